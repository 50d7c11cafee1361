"""How good a base is on events that it has not learned: the last part of the events by time, scored first and learned then.

`replay.py` scores, `counters.py` is what counting alone achieves, `estimates.py` has the measures with their intervals, `report.py`
compares by task and slice, `curves.py` has the numbers that `plots.py` draws, and `render.py` writes the page. Knows nothing of files,
Kafka or Redis.
"""
