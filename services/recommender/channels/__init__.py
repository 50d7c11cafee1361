"""The recall channels, one a file; `registry.py` lists them in the order in which they take turns."""
