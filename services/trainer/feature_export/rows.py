"""The rows of an export: what was known of a user or an item from a moment on, as whoever asked then would have been told. Pure.

A row's time is the second behind the one in which it came to be, since what was written in a second is known in the next (D99): a
point-in-time join gives an event nothing of itself. Each entity begins with a row of nothing, at 1970: without it, Feast's file store drops
whoever asks before the first row (findings/feast_history_leaves_out_rows.sh). Counters are those of the entity's latest act; what everybody
else did since moves the means that they are compared with a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from services.common.events.feedback_kinds import IMPRESSION
from services.common.ranker.declared.values import Words
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Float16Array
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import Versions
from services.trainer.batch import FeatureStates
from services.trainer.feature_export.views import KEYS, View

US_PER_S = 1_000_000


class Row(NamedTuple):
    """One row of a view."""

    entity_id: str
    from_s: int
    """Unix seconds from which on it was known."""
    values: tuple[Any, ...]
    """In the order of the view's columns."""

    @classmethod
    def of_nothing(cls, view: View, entity_id: str) -> Row:
        """Return the row that says that nothing is known yet."""
        return cls(entity_id, 0, (None,) * len(view.columns))


def without_features(spec: FeatureSpec) -> FeatureSpec:
    """Return a spec with the same counters and no declared features."""
    return FeatureSpec.parse(spec.model_dump(mode="json", exclude={"features"}), source=spec.source)


def counter_rows(
    spec: FeatureSpec, events: Iterable[Interaction], categories: Mapping[str, Sequence[str]], views: Sequence[View]
) -> Iterator[tuple[View, Row]]:
    """Yield the rows of the views of counters, in the order of time; of a second, one an entity.

    Args:
        spec: without declared features.
        events: in the order of time.
        categories: of the items.
        views: of counters, one of a side at most.
    """
    states, by_side = FeatureStates(spec, categories), {view.side: view for view in views}
    changed: dict[tuple[str, str], Row] = {}
    known: set[tuple[str, str]] = set()
    second = None
    for event in events:
        if event.kind == IMPRESSION.name:
            continue
        if event.time_ms // 1000 != second:
            yield from ((by_side[side], row) for (side, _), row in changed.items())
            changed, second = {}, event.time_ms // 1000
        states.apply(event)
        features = states.features(event.user_id, [event.item_id])
        sides: dict[str, tuple[str, Float16Array]] = {
            "user": (event.user_id, features.user_U),
            "item": (event.item_id, features.items_NF[0]),
        }
        for side, view in by_side.items():
            entity_id, numbers = sides[side]
            if (side, entity_id) not in known:
                known.add((side, entity_id))
                yield view, Row.of_nothing(view, entity_id)
            values = tuple(float(numbers[column.at]) for column in view.columns)
            changed[side, entity_id] = Row(entity_id, event.time_ms // 1000 + 1, values)
    yield from ((by_side[side], row) for (side, _), row in changed.items())


def attribute_rows(view: View, versions: Versions) -> Iterator[Row]:
    """Yield the rows of a view of attributes, entity by entity; of several versions of a second the last.

    Raises:
        WrongValue: an attribute is of another type than the spec reads; names it.
    """
    columns = [_cells(column.wanted.column(versions.rows)) for column in view.columns if column.wanted is not None]
    for entity_id, written in versions.written():
        by_second = {max(time_ms // 1000 + 1, 0): row for time_ms, row in written}
        if 0 not in by_second:
            yield Row.of_nothing(view, entity_id)
        for from_s, row in by_second.items():
            yield Row(entity_id, from_s, tuple(cells[row] for cells in columns))


def _cells(column: Any) -> list[Any]:
    """Return a column as Python values: None for what is absent."""
    if isinstance(column, Words):
        bounds = column.offsets.tolist()
        words = [column.vocabulary[code] for code in column.codes_S.tolist()]
        return [words[begin:end] or None for begin, end in itertools.pairwise(bounds)]
    absent = column.absent_N.tolist()
    rows = column.values_ND.tolist()
    return [None if is_absent else (row[0] if column.width == 1 else row) for is_absent, row in zip(absent, rows, strict=True)]


def columns_of(view: View, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return rows as columns by name, as the view's schema has them."""
    columns: dict[str, list[Any]] = {
        KEYS[view.side]: [row.entity_id for row in rows],
        "event_timestamp": [row.from_s * US_PER_S for row in rows],
    }
    return columns | {column.name: [row.values[at] for row in rows] for at, column in enumerate(view.columns)}
