"""Installs wsgate: `pip install .` brings the command `wsgate`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "wsgate" / "__init__.py").read_text(encoding="utf-8"))
TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "hypothesis>=6.100", "aioice>=0.9"]
CHECK = ["ruff==0.17.5", "mypy>=1.15", "types-psutil"]

setup(
    name="wsgate",
    version=VERSION.group(1) if VERSION else "0",
    description="SIP over WebSocket gateway: browsers use the SIP servers a company already has",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["wsgate", "wsgate.*"]),
    package_data={"wsgate": ["phone/*", "py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "gevent>=23.9",
        "gevent-websocket>=0.10.1",
        "dnspython>=2.6",
        "PyJWT>=2.8",
        "pyOpenSSL>=24.1",
        "cryptography>=42",
        "psutil>=5.9",
        "prometheus-client>=0.20",
    ],
    extras_require={"test": TEST, "dev": [*TEST, *CHECK]},
    entry_points={"console_scripts": ["wsgate = wsgate.cli:main"]},
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Communications :: Internet Phone",
    ],
)
