"""A batch of rows of a file of events: its columns, each cell read and checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.common.events.feedback_kinds import IMPRESSION
from services.common.ranker.declared.plan import Attributes
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.attributes import Fields, fields_in_events, rows_of_events
from services.trainer.event_files.columns import Coded, category_column, plain, read_ids, read_kinds, read_positions, read_values
from services.trainer.event_files.load import AS_HERE, Names
from services.trainer.event_files.locate import FoundFile
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.times import TimeFacts, read_times

VALUE, TITLE, CATEGORIES, POSITION = "value", "title", "categories", "position"
ACT_COLUMNS = ("user_id", "item_id", "kind", "time")
REQUIRED_COLUMNS = ("user_id", "item_id", "kind", VALUE, "time")
COLUMNS = (*REQUIRED_COLUMNS, CATEGORIES, POSITION)
USUAL_ANSWER_WINDOW_MS = 660_000
"""As long as the joiner takes feedback to a request by its defaults: its window, and the horizon of late feedback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What the files do not say themselves.

    Attributes:
        until_fraction: learn only this part of the events, the oldest; the cut splits no second.
        time_unit: of a column `time` of numbers, one of `times.UNIT_NAMES`; None: recognised.
        category_separator: between the names in a text of `categories`; None: recognised.
        names: what the files call the columns that are not named as here.
        answer_window_ms: an act answers what the user saw of the item up to so long before it; 0: each row says itself what became of it;
            None: the same, but rows that may mean the other are refused.
        users: file or folder of attributes of users; None: they stand in the events file.
        items: file or folder of attributes of items; None: they stand in the events file.
    """

    until_fraction: float = 1.0
    time_unit: str | None = None
    category_separator: str | None = None
    names: Names = AS_HERE
    answer_window_ms: int | None = None
    users: str | Path | None = None
    items: str | Path | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A batch of rows of one file. `categories` is the raw column, None where the file has none; `attributes` are by side; `positions_N`
    are 0 where nothing is known of them, or nothing asked."""

    file: object
    first_row: int
    users: Coded
    items: Coded
    kinds: Coded
    values_N: npt.NDArray[np.float64]
    times_N: npt.NDArray[np.int64]
    taken_for: str
    categories: Any
    positions_N: npt.NDArray[np.int32]
    attributes: Mapping[str, Sequence[Attributes]] = field(default_factory=dict)


def event_fields(spec: FeatureSpec, options: ReadOptions) -> tuple[Fields, ...]:
    """Return the attributes that columns of the events hold."""
    return fields_in_events(spec.plan, users_apart=options.users is not None, items_apart=options.items is not None)


def check_columns(found: FoundFile, names: Sequence[str], spec: FeatureSpec, called: Names) -> None:
    """Raise EventFileError unless a file and its folders have all columns of events.

    Args:
        found: the file, and the columns of its folders.
        names: of its columns, as the trainer names them.
        spec: where none of its kinds states an opinion, events need no value: that something was done is all there is to say.
        called: what the file calls them.
    """
    required = REQUIRED_COLUMNS if any(kind.value_range is not None for kind in spec.kinds.values()) else ACT_COLUMNS
    required = (*required, POSITION) if spec.reads_positions else required
    there = list(dict.fromkeys((*names, *map(called.meant, found.partitions))))
    missing = next((name for name in required if name not in there), None)
    if missing is None:
        return
    if called.of(missing) != missing:
        theirs = called.of(missing)
        raise EventFileError(f"{found.path}: column {theirs!r} is missing, which --columns {missing}={theirs} names")
    wanted = f"{', '.join(required)}[, {TITLE}, {CATEGORIES}]"
    has = f"{found.path}: column {missing!r} is missing; wanted: {wanted}; of these it has {', '.join(there)}"
    reasons = {
        VALUE: "; a kind of the spec has a value_range, so events have values",
        POSITION: "; the spec has a position_bias, so rows say where items stood (1: first)",
    }
    why = reasons.get(missing, "")
    raise EventFileError(f"{has}{why}; if it has another name there, say so: --columns {missing}=NAME")


def read_part(
    found: FoundFile,
    columns: dict[str, Any],
    spec: FeatureSpec,
    options: ReadOptions,
    *,
    first_row: int = 0,
    facts: TimeFacts | None = None,
) -> Part:
    """Read a batch of the columns of a file.

    Args:
        found: the file, and the columns of its folders.
        columns: by name; those of the folders are added.
        spec: the feature spec.
        options: what the files do not say themselves.
        first_row: how many rows of the file stand before the batch.
        facts: of the whole column `time`; None: the batch is the whole file, or the column is that of a folder.
    Raises:
        EventFileError: a column is missing, or holds what cannot be read without guessing.
    """
    num_rows = len(next(iter(columns.values())))
    for name, value in found.partitions.items():
        # A file that repeats the column of its folder has it with its type.
        columns.setdefault(options.names.meant(name), pa.repeat(pa.scalar(value, pa.string()), num_rows))
    check_columns(found, list(columns), spec, options.names)
    columns.setdefault(VALUE, pa.nulls(num_rows))
    at = {name: Place(found.path, options.names.of(name), first_row) for name in columns}
    kinds = read_kinds(columns["kind"], at["kind"], spec.kinds_of_rows)
    times_N, taken_for = read_times(plain(columns["time"]), at["time"], options.time_unit, facts)
    return Part(
        file=found.path,
        first_row=first_row,
        users=read_ids(columns["user_id"], at["user_id"]),
        items=read_ids(columns["item_id"], at["item_id"]),
        kinds=kinds,
        values_N=read_values(columns[VALUE], at[VALUE]),
        times_N=times_N,
        taken_for=taken_for,
        categories=category_column(columns[CATEGORIES], at[CATEGORIES]) if CATEGORIES in columns else None,
        positions_N=_positions(columns, at, kinds, spec),
        attributes=rows_of_events(found.path, columns, event_fields(spec, options), first_row),
    )


def _positions(columns: Mapping[str, Any], at: Mapping[str, Place], kinds: Coded, spec: FeatureSpec) -> npt.NDArray[np.int32]:
    """Return where items stood; an act that has a row of its own may leave that to the impression that it answers."""
    if not spec.reads_positions:
        return np.zeros(len(kinds.codes_N), np.int32)
    is_seen_N = np.asarray([name == IMPRESSION.name for name in kinds.distinct], np.bool_)[kinds.codes_N]
    return read_positions(columns[POSITION], at[POSITION], is_seen_N)
