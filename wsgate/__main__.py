"""`python -m wsgate`."""

import sys

from wsgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
