"""A history of events from files: what `make train` learns. Wires the other modules together; the order of rows is the order of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.common.events.limits import check_categories
from services.common.ranker.declared.plan import NONE, Attributes
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import value_fault
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import Versions
from services.trainer.event_files.attributes import ITEM_CATEGORIES, Fields, fields_in_events, read_versions, rows_of_events
from services.trainer.event_files.categories import UnreadableCategories, category_names, separator_of
from services.trainer.event_files.columns import category_column, cell_of, plain, read_ids, read_kinds, read_values
from services.trainer.event_files.load import load
from services.trainer.event_files.locate import FoundFile, find_files
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.times import read_times

REQUIRED_COLUMNS = ("user_id", "item_id", "kind", "value", "time")
CATEGORIES = "categories"
COLUMNS = (*REQUIRED_COLUMNS, CATEGORIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What the files do not say themselves.

    Attributes:
        until_fraction: learn only this part of the events, the oldest; the cut splits no (user, second) block.
        time_unit: of a column `time` of numbers, one of `times.UNIT_NAMES`; None: recognised.
        category_separator: between the names in a text of `categories`; None: recognised.
        users: file or folder of attributes of users; None: they stand in the events file.
        items: file or folder of attributes of items; None: they stand in the events file.
    """

    until_fraction: float = 1.0
    time_unit: str | None = None
    category_separator: str | None = None
    users: Path | None = None
    items: Path | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Events to learn, in the order of time, and the categories of every item in the files.

    Attributes:
        set_aside: events that cannot be learned, by what is wrong with them, and where the first one stands.
        notes: what the files were taken for, a line each.
        user_attributes: what was known of users, and when; of the fields that the spec's features read.
        item_attributes: the same of items.
    """

    interactions: list[Interaction]
    categories: dict[str, tuple[str, ...]]
    set_aside: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    user_attributes: Versions = field(default_factory=Versions)
    item_attributes: Versions = field(default_factory=Versions)


@dataclass(frozen=True, slots=True)
class Part:
    """The columns of one file, read. `categories` is the raw column, None where the file has none; `attributes` are by side."""

    file: Path
    users: list[str]
    items: list[str]
    kinds: list[str]
    values_N: npt.NDArray[np.float64]
    times_N: npt.NDArray[np.int64]
    taken_for: str
    categories: Any
    attributes: Mapping[str, Sequence[Attributes]] = field(default_factory=dict)


def read_history(path: Path, spec: FeatureSpec, options: ReadOptions = ReadOptions()) -> History:
    """Read and check a file of events, or a folder of them.

    Events whose value cannot be learned (outside the range of its kind, or missing where it counts) are set aside and counted.

    Raises:
        EventFileError: a file is missing, lacks a column, or holds what cannot be read without guessing; names file, column, row, value and
            what to do.
    """
    wanted = dict.fromkeys((*COLUMNS, *(name for fields in _fields(spec, options) for name in fields.columns)))
    loaded = ((file, load(file.path, list(wanted))) for file in find_files(path))
    parts = [part for file, columns in loaded if len((part := read_part(file, columns, spec, options)).users)]
    if not parts:
        raise EventFileError(f"{path}: holds no events")
    order = np.argsort(np.concatenate([part.times_N for part in parts]), kind="stable").tolist()
    places = [(part, row) for part in parts for row in range(len(part.users))]
    ordered = [places[index] for index in order]
    categories, separated = _categories(ordered, options)
    rows, set_aside = _learnable(spec, ordered)
    if not rows:
        first = next(iter(set_aside.items()))
        raise EventFileError(
            f"{path}: holds no event that can be learned: {first[1][0]} were set aside ({first[0]}; the first is {first[1][1]})"
        )
    users, items = (_versions(spec, side, ordered, options) for side in ("user", "item"))
    if any((one.side, one.field) == ("item", ITEM_CATEGORIES) for one in spec.plan.wanted):
        items = items.with_fixed(ITEM_CATEGORIES, categories)
    rows = rows[: cut_by_time(rows, options.until_fraction)]
    notes = (*_notes(path, parts, rows, separated), *_notes_of_attributes(options, users, items))
    return History(rows, categories, set_aside, notes, users, items)


def _fields(spec: FeatureSpec, options: ReadOptions) -> tuple[Fields, ...]:
    return fields_in_events(spec.plan, users_apart=options.users is not None, items_apart=options.items is not None)


def _versions(spec: FeatureSpec, side: str, ordered: Sequence[tuple[Part, int]], options: ReadOptions) -> Versions:
    """Return the attributes of users or of items, from their file or from the events."""
    fields = Fields.of(spec.plan, side)
    path = options.users if side == "user" else options.items
    if not fields.readers:
        return Versions()
    if path is not None:
        return read_versions(path, f"{side}_id", fields, options.time_unit)
    written = ((part, row, part.users if side == "user" else part.items) for part, row in ordered)
    return Versions((ids[row], int(part.times_N[row]), part.attributes[side][row]) for part, row, ids in written)


def _notes_of_attributes(options: ReadOptions, users: Versions, items: Versions) -> Iterator[str]:
    for name, path, versions in (("users", options.users, users), ("items", options.items, items)):
        if len(versions):
            source = f"{path}" if path is not None else "the events (known from the second after each)"
            yield f"{source}: attributes of {len(versions)} {name} in {len(versions.rows) - 1} versions"


def read_part(found: FoundFile, columns: dict[str, Any], spec: FeatureSpec, options: ReadOptions) -> Part:
    """Read the columns that `load` gave of a file.

    Raises:
        EventFileError: as `read_history`.
    """
    num_rows = len(next(iter(columns.values())))
    for name, value in found.partitions.items():
        # A file that repeats the column of its folder has it with its type.
        columns.setdefault(name, pa.repeat(pa.scalar(value, pa.string()), num_rows))
    missing = next((name for name in REQUIRED_COLUMNS if name not in columns), None)
    if missing is not None:
        wanted = f"{', '.join(REQUIRED_COLUMNS)}[, title, {CATEGORIES}]"
        raise EventFileError(f"{found.path}: column {missing!r} is missing; wanted: {wanted}; of these it has {', '.join(columns)}")
    at = {name: Place(found.path, name) for name in columns}
    times_N, taken_for = read_times(plain(columns["time"]), at["time"], options.time_unit)
    return Part(
        file=found.path,
        users=read_ids(columns["user_id"], at["user_id"]),
        items=read_ids(columns["item_id"], at["item_id"]),
        kinds=read_kinds(columns["kind"], at["kind"], spec.kinds),
        values_N=read_values(columns["value"], at["value"]),
        times_N=times_N,
        taken_for=taken_for,
        categories=category_column(columns[CATEGORIES], at[CATEGORIES]) if CATEGORIES in columns else None,
        attributes=rows_of_events(found.path, columns, _fields(spec, options)),
    )


def _learnable(spec: FeatureSpec, ordered: Sequence[tuple[Part, int]]) -> tuple[list[Interaction], dict[str, tuple[int, str]]]:
    """Return the events that can be learned, and the others by what is wrong: how many, and where the first one is."""
    rows: list[Interaction] = []
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for part, row in ordered:
        kind, value = part.kinds[row], float(part.values_N[row])
        if value_fault(spec, kind, value) is not None or np.isinf(value):
            reason = f"value of kind {kind!r} {'is missing' if np.isnan(value) else 'is outside its range'}"
            counts[reason] += 1
            first.setdefault(reason, f"{part.file} row {row + 1}: {value:g}")
            continue
        if np.isnan(value):
            value = 1.0  # the act is all that counts
        context = part.attributes["context"][row] if "context" in part.attributes else NONE
        rows.append(Interaction(part.users[row], part.items[row], kind, value, int(part.times_N[row]), context))
    return rows, {reason: (count, first[reason]) for reason, count in counts.items()}


def _categories(ordered: Sequence[tuple[Part, int]], options: ReadOptions) -> tuple[dict[str, tuple[str, ...]], str]:
    """Return the categories of every item, in the order of first appearance, and the separator; the last row that says any counts."""
    last: dict[str, tuple[Part, int] | None] = {}
    for part, row in ordered:
        item_id = part.items[row]
        if part.categories is not None and part.categories[row].is_valid:
            last[item_id] = (part, row)
        else:
            last.setdefault(item_id, None)
    cells = {item_id: cell_of(at[0].categories, at[1], Place(at[0].file, CATEGORIES)) for item_id, at in last.items() if at is not None}
    separator = separator_of(cells.values()) if options.category_separator is None else options.category_separator
    found: dict[str, tuple[str, ...]] = {}
    for item_id, at in last.items():
        try:
            found[item_id] = category_names(cells[item_id], separator) if at is not None else ()
            check_categories("names categories outside their bounds", found[item_id], UnreadableCategories)
        except UnreadableCategories as error:
            assert at is not None
            raise Place(at[0].file, CATEGORIES).fault(at[1], cells[item_id], str(error)) from error
    return found, separator


def cut_by_time(rows: Sequence[Interaction], fraction: float) -> int:
    """Return how many of the events, in the order of time, are the oldest `fraction` of them; the cut splits no (user, second) block."""
    cut = round(len(rows) * fraction)
    while 0 < cut < len(rows) and _block(rows[cut]) == _block(rows[cut - 1]):
        cut += 1
    return cut


def _block(row: Interaction) -> tuple[str, int]:
    return row.user_id, row.time_ms // 1000


def _notes(path: Path, parts: Sequence[Part], rows: Sequence[Interaction], separator: str) -> tuple[str, ...]:
    begin, end = (f"{datetime.fromtimestamp(row.time_ms / 1e3, UTC):%Y-%m-%d %H:%M}" for row in (rows[0], rows[-1]))
    taken_for = ", ".join(dict.fromkeys(part.taken_for for part in parts))
    separated = f"; categories separated by {separator!r}" if separator else ""
    files = "1 file" if len(parts) == 1 else f"{len(parts)} files"
    return (f"{path}: {files}, {sum(len(part.users) for part in parts)} events from {begin} to {end} UTC; time: {taken_for}{separated}",)


def remarks(history: History) -> Iterator[str]:
    """Yield what whoever trains should see: what the files were taken for, and what was set aside."""
    yield from history.notes
    for reason, (count, first) in history.set_aside.items():
        yield f"set aside: {count} events whose {reason} (the first: {first})"
