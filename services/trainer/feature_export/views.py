"""The feature views of an export: whose features, which columns of which type. Pure.

Counters are the ranker's built-in columns that are of a user or an item alone, as `services.common.ranker.columns` computes them.
Attributes are the fields that the spec's declared features read, as they were written: another model makes its own of "Rome" or 12.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from services.common.ranker.columns import ITEM_COLUMNS, USER_COLUMNS
from services.common.ranker.declared.plan import Wanted
from services.common.ranker.feature_spec import FeatureSpec

TIMESTAMP = "event_timestamp"
KEYS = {"user": "user_id", "item": "item_id"}


@dataclass(frozen=True, slots=True)
class Column:
    """One feature.

    Attributes:
        name: as Feast and Parquet have it: letters, digits and underscores.
        is_called: in the ranker.
        arrow: its type.
        at: of a counter, its place among the ranker's columns of that side.
        wanted: of an attribute, how it is read.
    """

    name: str
    is_called: str
    arrow: pa.DataType
    at: int = 0
    wanted: Wanted | None = None


@dataclass(frozen=True, slots=True)
class View:
    """Features of one entity.

    Attributes:
        side: "user" or "item".
        columns: at least one.
    """

    name: str
    side: str
    columns: Sequence[Column]

    @property
    def schema(self) -> pa.Schema:
        """Of its Parquet file."""
        head = [(KEYS[self.side], pa.string()), (TIMESTAMP, pa.timestamp("us", tz="UTC"))]
        return pa.schema([*head, *((column.name, column.arrow) for column in self.columns)])


def views_of(spec: FeatureSpec) -> tuple[View, ...]:
    """Return the views of a spec; one without a column is left out."""
    user_counters = [column.name for column in USER_COLUMNS]
    item_names = [(name, column.is_of_pair) for column in ITEM_COLUMNS for name in column.names(spec.counters.half_lives_events)]
    views = [
        View("user_counters", "user", _named((name, pa.float32(), at, None) for at, name in enumerate(user_counters))),
        View(
            "item_counters",
            "item",
            _named((name, pa.float32(), at, None) for at, (name, is_of_pair) in enumerate(item_names) if not is_of_pair),
        ),
    ]
    for side in KEYS:
        # A field that is read both ways holds numbers: words may be made of these, but not the other way round.
        fields = {one.field: one for one in sorted(spec.plan.wanted, key=lambda one: one.cast, reverse=True) if one.side == side}
        views.append(View(f"{side}_attributes", side, _named((field, _type_of(one), 0, one) for field, one in fields.items())))
    return tuple(view for view in views if view.columns)


def _type_of(wanted: Wanted) -> pa.DataType:
    if wanted.cast == "words":
        return pa.list_(pa.string())
    return pa.float64() if wanted.width == 1 else pa.list_(pa.float64())


def _named(columns: Iterable[tuple[str, pa.DataType, int, Wanted | None]]) -> list[Column]:
    """Return the columns under names that Feast takes; of two that would be called alike, the later one gets a number."""
    found: dict[str, Column] = {}
    for is_called, arrow, at, wanted in columns:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", is_called).lstrip("_") or "feature"
        name, number = plain, 2
        while name in found or name in (TIMESTAMP, *KEYS.values()):
            name, number = f"{plain}_{number}", number + 1
        found[name] = Column(name, is_called, arrow, at, wanted)
    return list(found.values())
