"""Search for a better feature spec: trials learn the first part of the events and are compared on the next; the last measures the winner.

`space.py` says what is searched and `documents.py` where that stands in a spec; `parts.py` divides the events, `measure.py` learns and
scores one spec, `study.py` keeps the trials, `trials.py` runs them, in processes of this machine (`workers.py`) or of a Ray cluster
(`ray_workers.py`, over `remote.py`), `given.py` is what each process begins with, `report.py` writes what was found. Knows nothing of Kafka
or Redis.
"""
