"""Which rows of kind `impression` an act answers, so that no item is learned as left alone and as chosen as well. Pure.

A file may say what became of an impression in one row (its kind is the act, or `impression` when there was none), or in two: the
impression, and the act later. Of two rows the impression is left out, and the act gets what it knew: attributes of the request that only
impressions had would tell the acts from them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.trainer.event_files.ordered import Run
from services.trainer.event_files.stored import CONTEXT, ITEM, KIND, POSITION, TIME_MS, USER


@dataclass(slots=True)
class _Seen:
    """An impression: its row in the run, when it was, its packed context, and where the item stood (0: unknown)."""

    row: int
    time_ms: int
    context: str | None
    position: int


class _Walk:
    """Goes through rows in the order of time, and remembers of each user and item what was seen last, as long as an act may answer it."""

    def __init__(self, impression: int, window_ms: int) -> None:
        self._impression, self._window_ms = impression, window_ms
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._oldest: deque[tuple[tuple[int, int], _Seen]] = deque()
        self._row = 0

    def acts(self, page: Any) -> Iterator[tuple[int, _Seen]]:
        """Yield of the next page each act that answers an impression: its place in the page, and what it answers."""
        columns = [page.column(name).to_numpy().tolist() for name in (USER, ITEM, KIND, TIME_MS)]
        contexts = page.column(CONTEXT).to_pylist() if CONTEXT in page.schema.names else [None] * page.num_rows
        positions = page.column(POSITION).to_pylist() if POSITION in page.schema.names else [0] * page.num_rows
        for place, (user, item, kind, time_ms, context, position) in enumerate(zip(*columns, contexts, positions, strict=True)):
            self._forget(time_ms)
            if kind == self._impression:
                seen = _Seen(self._row + place, time_ms, context, position)
                self._seen[user, item] = seen
                self._oldest.append(((user, item), seen))
            elif (user, item) in self._seen:
                yield place, self._seen[user, item]
        self._row += page.num_rows

    def _forget(self, time_ms: int) -> None:
        while self._oldest and self._oldest[0][1].time_ms < time_ms - self._window_ms:
            key, seen = self._oldest.popleft()
            if self._seen.get(key) is seen:
                del self._seen[key]


def answered(run: Run, impression: int, window_ms: int) -> npt.NDArray[np.int64]:
    """Return which rows of a run are impressions that an act answers, int64, rising.

    Args:
        run: all rows that can be learned, in the order of time.
        impression: the code of that kind.
        window_ms: an act answers what its user saw of its item last, up to so long before it.
    """
    walk = _Walk(impression, window_ms)
    return np.asarray(sorted({seen.row for page in run for _, seen in walk.acts(page)}), np.int64)


def without_answered(run: Run, answered_N: npt.NDArray[np.int64], impression: int, window_ms: int) -> Iterator[Any]:
    """Yield the pages of a run without these rows; acts have what they do not say themselves from the impression that they answer:
    attributes of the request, and where the item stood."""
    walk, first = _Walk(impression, window_ms), 0
    for page in run:
        answers = list(walk.acts(page))
        if answers:
            page = _told(page, answers)
        here = answered_N[np.searchsorted(answered_N, first) : np.searchsorted(answered_N, first + page.num_rows)] - first
        first += page.num_rows
        kept_N = np.ones(page.num_rows, np.bool_)
        kept_N[here] = False
        yield page.filter(pa.array(kept_N))


def _told(page: Any, answers: Sequence[tuple[int, _Seen]]) -> Any:
    """Return a page whose acts know what the impressions knew that they answer."""
    columns = {name: page.column(name) for name in page.schema.names}
    if CONTEXT in columns:
        contexts = columns[CONTEXT].to_pylist()
        for place, seen in answers:
            contexts[place] = _joined(seen.context, contexts[place])
        columns[CONTEXT] = pa.array(contexts, pa.string())
    if POSITION in columns:
        positions = columns[POSITION].to_pylist()
        for place, seen in answers:
            positions[place] = positions[place] or seen.position
        columns[POSITION] = pa.array(positions, pa.int32())
    return pa.RecordBatch.from_arrays([*columns.values()], schema=page.schema)


def _joined(of_impression: str | None, own: str | None) -> str | None:
    """Return both contexts as one, both packed (`stored.packed_attributes`); what the act says itself counts."""
    if of_impression is None or own is None:
        return own if of_impression is None else of_impression
    return json.dumps(json.loads(of_impression) | json.loads(own))
