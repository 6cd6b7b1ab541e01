"""The whole daemon under a day in short: `scripts/soak` runs it, tests/loopback/test_soak.py runs a little of it."""
