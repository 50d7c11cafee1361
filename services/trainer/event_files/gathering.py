"""Gathers the batches of all files: events in the order of time, what was known of users and items when, and what is set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from services.common.events.feedback_kinds import IMPRESSION
from services.common.ranker.declared.plan import Attributes
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import value_fault
from services.trainer.attribute_history import Versions
from services.trainer.event_files.attributes import Fields, read_versions
from services.trainer.event_files.catalogue import Catalogue
from services.trainer.event_files.impressions import answered, without_answered
from services.trainer.event_files.ordered import Run, RunWriter, Sorter, WorkFolder
from services.trainer.event_files.parts import CATEGORIES, USUAL_ANSWER_WINDOW_MS, Part, ReadOptions, event_fields
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.stored import (
    CONTEXT,
    EVENT_FIELDS,
    ITEM,
    POSITION,
    TIME_MS,
    USER,
    Codes,
    EventTable,
    StoredEvents,
    packed_attributes,
    unpacked_attributes,
)

_IS_LEARNED = "is_learned"
_ATTRIBUTES = "attributes:"


@dataclass(slots=True)
class _SetAside:
    """Events with the same fault: how many, and the first one in the order of time."""

    count: int
    time_ms: int
    row: int
    first: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """What all files hold.

    Attributes:
        how: in a few words, how the events were brought in order.
        num_answered: impressions that are left out, since an act answers them.
    """

    events: StoredEvents
    users: Versions
    items: Versions
    how: str
    num_answered: int = 0


class Gathering:
    """Takes batches of rows in the order of files and rows."""

    def __init__(self, spec: FeatureSpec, options: ReadOptions, work: WorkFolder) -> None:
        """options: what the files do not say. work: where events are that do not stay in memory."""
        self._spec, self._options, self._work = spec, options, work
        self._users, self._items = Codes(), Codes()
        self._kinds = list(spec.kinds_of_rows)
        self._catalogue = Catalogue()
        self._faults: dict[str, _SetAside] = {}
        self._sides = [fields.side for fields in event_fields(spec, options)]
        # Rows that are not learned say all the same what was known of their user and item.
        self._keeps_all = "user" in self._sides or "item" in self._sides
        fields = [pa.field(name, kind) for name, kind in EVENT_FIELDS]
        fields += [pa.field(_column(side), pa.string()) for side in self._sides]
        if spec.reads_positions:
            fields.append(pa.field(POSITION, pa.int32()))
        self._schema = pa.schema([*fields, pa.field(_IS_LEARNED, pa.bool_())])
        self._sorter = Sorter(work, self._schema, TIME_MS)
        self.num_rows = 0
        self._num_learned = 0

    def add(self, part: Part) -> None:
        """Take the next rows."""
        users_N = self._users.of(part.users.distinct)[part.users.codes_N]
        items_N = self._items.of(part.items.distinct)[part.items.codes_N]
        kinds_N = np.asarray([self._kinds.index(name) for name in part.kinds.distinct], np.int32)[part.kinds.codes_N]
        self._catalogue.add(
            items_N, part.times_N, self.num_rows, part.categories, Place(part.file, self._options.names.of(CATEGORIES), part.first_row)
        )
        is_learned_N = self._learnable(part)
        # Where there is no value, the act is all that counts.
        values_N = np.where(np.isnan(part.values_N), 1.0, part.values_N)
        columns = [pa.array(column) for column in (users_N, items_N, kinds_N, values_N, part.times_N)]
        columns += [pa.array([packed_attributes(row) for row in part.attributes[side]], pa.string()) for side in self._sides]
        if self._spec.reads_positions:
            columns.append(pa.array(part.positions_N))
        batch = pa.RecordBatch.from_arrays([*columns, pa.array(is_learned_N)], schema=self._schema)
        self.num_rows += batch.num_rows
        num_learned = int(is_learned_N.sum())
        self._num_learned += num_learned
        if not self._keeps_all and num_learned < batch.num_rows:
            batch = batch.filter(pa.array(is_learned_N))
        if batch.num_rows:
            self._sorter.add(batch)

    def _learnable(self, part: Part) -> Any:
        """Return which rows can be learned, bool [N], and note what is wrong with the others."""
        rows: dict[str, list[int]] = {}
        kinds, values = part.kinds.texts(), part.values_N.tolist()
        for row, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            if value_fault(self._spec, kind, value) is not None or value in (np.inf, -np.inf):
                rows.setdefault(f"value of kind {kind!r} {'is missing' if value != value else 'is outside its range'}", []).append(row)
        is_learned_N = np.ones(len(values), np.bool_)
        for reason, wrong in rows.items():
            is_learned_N[wrong] = False
            first = wrong[int(np.argmin(part.times_N[wrong]))]
            shown = f"{part.file} row {part.first_row + first + 1}: {values[first]:g}"
            fault = _SetAside(len(wrong), int(part.times_N[first]), self.num_rows + first, shown)
            before = self._faults.get(reason)
            if before is not None:
                earliest = min(before, fault, key=lambda one: (one.time_ms, one.row))
                fault = _SetAside(before.count + fault.count, earliest.time_ms, earliest.row, earliest.first)
            self._faults[reason] = fault
        return is_learned_N

    def categories(self) -> tuple[dict[str, tuple[str, ...]], str]:
        """Return the categories of every item, and the separator of texts; raises EventFileError."""
        return self._catalogue.categories(self._items.texts, self._options.category_separator)

    def set_aside(self) -> Mapping[str, tuple[int, str]]:
        """Return what cannot be learned, by what is wrong with it: how many events, and where the first one is."""
        in_order = sorted(self._faults.items(), key=lambda one: (one[1].time_ms, one[1].row))
        return {reason: (fault.count, fault.first) for reason, fault in in_order}

    def finish(self, path: str) -> Gathered:
        """Return everything; `path` is what errors name.

        Raises:
            EventFileError: no event can be learned, or a file of users or items cannot be read.
            ConfigurationError: the work folder cannot be written.
        """
        if not self._num_learned:
            reason, (count, first) = next(iter(self.set_aside().items()))
            raise EventFileError(f"{path}: holds no event that can be learned: {count} were set aside ({reason}; the first is {first})")
        num_runs = self._sorter.num_runs
        run = self._sorter.finish()
        users, items = (self._versions(side, run) for side in ("user", "item"))
        if len(run) > self._num_learned:
            run = self._rewritten(run, (page.filter(page.column(_IS_LEARNED)) for page in run))
        run, num_answered = self._outcomes(run, path)
        table = EventTable(run, self._users.texts, self._items.texts, self._kinds, self._work)
        how = "in the order of time, as they were" if num_runs == 1 else f"{num_runs} sorted runs merged"
        return Gathered(StoredEvents(table), users, items, how if num_runs else "in memory", num_answered)

    def _outcomes(self, run: Run, path: str) -> tuple[Run, int]:
        """Return the rows without impressions that an act answers, and how many these are.

        Raises:
            EventFileError: nobody said whether acts have rows of their own, and they may have.
        """
        if not self._spec.reads_impressions:
            return run, 0
        code, window_ms = self._kinds.index(IMPRESSION.name), self._options.answer_window_ms
        if window_ms == 0:
            return run, 0
        answered_N = answered(run, code, USUAL_ANSWER_WINDOW_MS if window_ms is None else window_ms)
        if not len(answered_N):
            return run, 0
        if window_ms is None:
            raise EventFileError(
                f"{path}: {len(answered_N)} impressions are followed by an act of the same user and item within"
                f" {USUAL_ANSWER_WINDOW_MS // 1000} s; if acts have rows of their own, say so: --answer-window-seconds"
                f" {USUAL_ANSWER_WINDOW_MS // 1000}; if the row of an impression says what became of it: --answer-window-seconds 0"
            )
        return self._rewritten(run, without_answered(run, answered_N, code, window_ms)), len(answered_N)

    def _versions(self, side: str, run: Run) -> Versions:
        """Return the attributes of users or of items, from their file or from the events."""
        fields = Fields.of(self._spec.plan, side)
        path = self._options.users if side == "user" else self._options.items
        if not fields.readers:
            return Versions()
        if path is not None:
            return read_versions(path, f"{side}_id", fields, self._options.time_unit, self._options.names)
        return Versions(self._written(side, run))

    def _written(self, side: str, run: Run) -> Iterator[tuple[str, int, Attributes]]:
        ids: Sequence[str] = self._users.texts if side == "user" else self._items.texts
        for page in run:
            columns = (page.column(name).to_pylist() for name in (USER if side == "user" else ITEM, TIME_MS, _column(side)))
            for code, time_ms, packed in zip(*columns, strict=True):
                yield ids[code], time_ms, unpacked_attributes(packed)

    def _rewritten(self, run: Run, kept: Iterable[Any]) -> Run:
        """Return a run of what is kept of each page of another one, which is deleted."""
        tables = (pa.Table.from_batches([page]) for page in kept)
        if run.path is None:
            pages = [batch for table in tables for batch in table.to_batches() if batch.num_rows]
            return Run(run.schema, np.cumsum([page.num_rows for page in pages]).tolist(), None, pages)
        writer = RunWriter(self._work, run.schema)
        for table in tables:
            writer.write(table)
        run.delete()
        return writer.close()


def _column(side: str) -> str:
    return CONTEXT if side == "context" else f"{_ATTRIBUTES}{side}"
