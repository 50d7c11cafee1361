"""Open-loop load on the running mesh, on Locust: `python -m loadtests.load --help`."""
