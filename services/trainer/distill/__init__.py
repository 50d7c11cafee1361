"""A small student that learns from a large teacher, side by side on one replay of the events; the student's base is what is served.

`lessons.py` teaches, `report.py` says what it was worth beside the same student without a teacher, `main.py` is the command. How a
teacher's answer enters a loss stands in `services.trainer.targets`. Knows nothing of Kafka or Redis.
"""
