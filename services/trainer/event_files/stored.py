"""Events of a history that need not be in memory: a sequence of `Interaction` over sorted pages, with ids as codes.

In memory are the ids of users and items, each once, and the pages that were read last.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa

from services.common.ranker.declared.plan import NONE, Attributes
from services.common.ranker.states import Interaction
from services.trainer.event_files.ordered import Run, Sorter, WorkFolder

CACHED_PAGES = 160
"""Of a run: as many as users who are active at once in an overlay, and some more."""
CONTEXT = "context"
USER, ITEM, KIND, VALUE, TIME_MS, POSITION = "user", "item", "kind", "value", "time_ms", "position"
EVENT_FIELDS = ((USER, pa.int32()), (ITEM, pa.int32()), (KIND, pa.int32()), (VALUE, pa.float64()), (TIME_MS, pa.int64()))
_RANK = "rank"
_MAPPING = "mapping"


def packed_attributes(attributes: Attributes) -> str | None:
    """Return attributes as a text that `unpacked_attributes` reads; None for none. Keys of mappings inside may be no texts."""
    return json.dumps({name: _packed(value) for name, value in attributes.items()}) if attributes else None


def _packed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_MAPPING: [[_packed(key), _packed(inner)] for key, inner in value.items()]}
    return [_packed(one) for one in value] if isinstance(value, (list, tuple)) else value


def unpacked_attributes(text: str | None) -> Attributes:
    """Return what was packed."""
    return NONE if text is None else {name: _unpacked(value) for name, value in json.loads(text).items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return {_unpacked(key): _unpacked(inner) for key, inner in value[_MAPPING]}
    return [_unpacked(one) for one in value] if isinstance(value, list) else value


class Codes:
    """Numbers of texts, in the order of their first appearance."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._code_of: dict[str, int] = {}

    def of(self, texts: Iterable[str]) -> Any:
        """Return the codes of texts, int32 [N]; new ones get the next."""
        codes = []
        for text in texts:
            code = self._code_of.setdefault(text, len(self.texts))
            if code == len(self.texts):
                self.texts.append(text)
            codes.append(code)
        return np.asarray(codes, np.int32)


@dataclass(slots=True)
class EventTable:
    """A run of events, what its codes mean, and the pages that were read last.

    Attributes:
        run: in the order of time, or of users.
        users, items, kinds: texts by code.
        work: where files may be written.
    """

    run: Run
    users: Sequence[str]
    items: Sequence[str]
    kinds: Sequence[str]
    work: WorkFolder
    by_users: dict[tuple[int, int], ByUser] = field(default_factory=dict)
    _cached: OrderedDict[int, Any] = field(default_factory=OrderedDict)

    def pages(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the rows from `start` to `stop`, as record batches."""
        if start >= stop:
            return
        number, offset = self._place(start)
        left = stop - start
        while left > 0:
            page = self.run.page(number).slice(offset, left)
            yield page
            left, number, offset = left - page.num_rows, number + 1, 0

    def _place(self, index: int) -> tuple[int, int]:
        """Return the page of a row, and its place in it."""
        number = bisect_right(self.run.ends, index)
        return number, index - (self.run.ends[number - 1] if number else 0)

    def _columns(self, index: int) -> tuple[Mapping[str, Any], int]:
        """Return the columns of the page of a row, as numpy arrays, and the row's place in them."""
        number, place = self._place(index)
        columns = self._cached.get(number)
        if columns is None:
            page = self.run.page(number)
            columns = {name: page.column(name).to_numpy(zero_copy_only=False) for name in page.schema.names}
            self._cached[number] = columns
            if len(self._cached) > CACHED_PAGES:
                self._cached.popitem(last=False)
        else:
            self._cached.move_to_end(number)
        return columns, place

    def time_ms(self, index: int) -> int:
        """Return the time of an event."""
        columns, place = self._columns(index)
        return int(columns[TIME_MS][place])

    def event(self, index: int) -> Interaction:
        """Return an event."""
        columns, at = self._columns(index)
        return Interaction(
            self.users[columns[USER][at]],
            self.items[columns[ITEM][at]],
            self.kinds[columns[KIND][at]],
            float(columns[VALUE][at]),
            int(columns[TIME_MS][at]),
            unpacked_attributes(columns[CONTEXT][at]) if CONTEXT in columns else NONE,
            int(columns[POSITION][at]) if POSITION in columns else 0,
        )

    def events(self, start: int, stop: int) -> Iterator[Interaction]:
        """Yield events, one after another."""
        for page in self.pages(start, stop):
            columns = [page.column(name).to_numpy().tolist() for name, _ in EVENT_FIELDS]
            contexts = page.column(CONTEXT).to_pylist() if CONTEXT in page.schema.names else [None] * page.num_rows
            positions = page.column(POSITION).to_pylist() if POSITION in page.schema.names else [0] * page.num_rows
            for user, item, kind, value, time_ms, context, position in zip(*columns, contexts, positions, strict=True):
                attributes = unpacked_attributes(context)
                yield Interaction(self.users[user], self.items[item], self.kinds[kind], value, time_ms, attributes, position)


class StoredEvents(Sequence[Interaction]):
    """A part of a table of events, in its order."""

    def __init__(self, table: EventTable, start: int = 0, stop: int | None = None) -> None:
        """Events `start` to `stop` (excluded) of the table."""
        self._table, self._start, self._stop = table, start, len(table.run) if stop is None else stop

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Interaction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Interaction]: ...
    def __getitem__(self, index: int | slice) -> Interaction | Sequence[Interaction]:
        """Return an event, or a part of these that is not in memory either."""
        if isinstance(index, slice):
            places = range(*index.indices(len(self)))
            if places.step != 1:
                return [self[place] for place in places]
            start = min(places.start, len(self))
            return StoredEvents(self._table, self._start + start, self._start + max(places.stop, start))
        return self._table.event(self._start + range(len(self))[index])

    def __iter__(self) -> Iterator[Interaction]:
        return self._table.events(self._start, self._stop)

    def __eq__(self, other: object) -> bool:
        """Say whether the other sequence has equal events."""
        if not isinstance(other, Sequence) or isinstance(other, str) or len(other) != len(self):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StoredEvents of {len(self)}: {[*self[:3]]}…"

    def by_user(self) -> ByUser:
        """Return them ordered by user; what was ordered once is kept, as passes ask for it again."""
        part = (self._start, self._stop)
        if part not in self._table.by_users:
            self._table.by_users[part] = _ordered_by_user(self._table, *part)
        return self._table.by_users[part]


class OwnEvents(Sequence[Interaction]):
    """The events of one user, in the order of time."""

    def __init__(self, table: EventTable, start: int, stop: int) -> None:
        self._table, self._start, self._stop = table, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: Any) -> Any:
        """Return an event."""
        return self._table.event(self._start + index)

    def second(self, index: int) -> int:
        """Return the Unix second of an event."""
        return self._table.time_ms(self._start + index) // 1000


class ByUser:
    """Events by user: users in the order of their first event, and the events of each in the order of time."""

    def __init__(self, table: EventTable, ends_U: Any) -> None:
        """ends_U: of each user, how many events stand up to the last of theirs, int64 [users]."""
        self._table, self._ends_U = table, ends_U

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self._ends_U)

    def __iter__(self) -> Iterator[OwnEvents]:
        start = 0
        for end in self._ends_U:
            yield OwnEvents(self._table, start, int(end))
            start = int(end)


def _ordered_by_user(table: EventTable, start: int, stop: int) -> ByUser:
    ranks_U = np.full(len(table.users), -1, np.int64)
    counts_U = np.zeros(len(table.users), np.int64)
    num_users = 0
    schema = table.run.schema.append(pa.field(_RANK, pa.int64()))
    sorter = Sorter(table.work, schema, _RANK)
    for page in table.pages(start, stop):
        users_N = page.column(USER).to_numpy()
        found, first = np.unique(users_N, return_index=True)
        new = found[np.argsort(first)]
        new = new[ranks_U[new] < 0]
        ranks_U[new] = np.arange(num_users, num_users + len(new))
        num_users += len(new)
        np.add.at(counts_U, ranks_U[users_N], 1)
        columns = [*page.columns, pa.array(ranks_U[users_N])]
        sorter.add(pa.RecordBatch.from_arrays(columns, schema=schema))
    by_user = EventTable(sorter.finish(), table.users, table.items, table.kinds, table.work)
    return ByUser(by_user, np.cumsum(counts_U[:num_users]))
