"""Constant load for a long time, and whether anything grows: `python -m loadtests.soak --help`."""
