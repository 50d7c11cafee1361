"""Writes what the ranker knew of users and items, and when, as an offline store that Feast reads: for a team's other models.

`views.py` says which columns there are, `rows.py` replays the events, `feast_repo.py` writes the definitions, `main.py` is the command.
Knows nothing of Kafka or Redis, and does not import Feast.
"""
