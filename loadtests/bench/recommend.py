"""Rows of the request path: a Recommend of 100 candidates beside another checkout, and what scoring takes in the model server."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.row import NotHere, Options, Result, Row
from loadtests.bench_recommend_path.__main__ import REQUESTS_A_SECOND, measure

_CALLS = 320


def _recommend(options: Options) -> Sequence[Result]:
    if options.against is None:
        raise NotHere("name the checkout to compare with, with environments of its own (make setup there): make bench AGAINST=FOLDER")
    taken = measure(options.against, triton=True, rounds=options.repeats, calls=_CALLS)
    rows = {
        "recommend_today": (REQUESTS_A_SECOND, "requests/s", True),
        "recommend_today_cpu": ("all, 16 at once", "processor ms/request", False),
        "score_100_ms": ("triton, 16 at once", "processor ms/request", False),
    }
    return [
        Result(
            name=name,
            unit=unit,
            ours=[numbers[row] for numbers in taken["this"]],
            peer=[numbers[row] for numbers in taken["against"]],
            more_is_better=more,
        )
        for name, (row, unit, more) in rows.items()
    ]


RECOMMEND = Row(
    "Recommend, 100 candidates, closed loop of 16, Triton, Redis and telemetry on, against another checkout",
    ("recommend_today", "recommend_today_cpu", "score_100_ms"),
    _recommend,
)
