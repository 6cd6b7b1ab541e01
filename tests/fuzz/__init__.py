"""Fuzzing of the pure machines: `scripts/fuzz` runs it, tests/test_fuzz.py runs a little of it."""
