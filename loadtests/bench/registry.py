"""The rows of the bench. A new one is a file beside this one, and its row here."""

from __future__ import annotations

from loadtests.bench.overload import OVERLOAD
from loadtests.bench.peers import PEERS
from loadtests.bench.recommend import RECOMMEND
from loadtests.bench.row import Row

ROWS: tuple[Row, ...] = (RECOMMEND, *PEERS, OVERLOAD)
