"""Attributes of users and items as they were at any moment of a recorded history, and the declared features of a request made then. Pure.

A version of an entity's attributes is known to the requests of later seconds than its own, never to one of the same second: an event that
wrote an attribute, or that happened together with it, was shown without it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

from services.common.ranker.declared.plan import NONE, Attributes, Plan
from services.common.ranker.declared.values import Int64Array
from services.common.ranker.features import Declared, past_of
from services.common.ranker.states import HistoryEntry, Interaction

_MAX_LOOKED_AT = 20_000
ALWAYS_MS = -1
"""Time of a version that was known from the start."""


class Versions:
    """Attributes of entities by time. Row 0 is nothing: of an entity that is not known, or not known yet."""

    def __init__(self, written: Iterable[tuple[str, int, Attributes]] = ()) -> None:
        """Take versions in.

        Args:
            written: (entity's id, Unix ms or ALWAYS_MS, all its attributes from then on), for each entity in the order of time.
        """
        self.rows: list[Attributes] = [NONE]
        self._times: dict[str, list[int]] = {}
        self._row_of: dict[str, list[int]] = {}
        for entity_id, time_ms, attributes in written:
            rows = self._row_of.setdefault(entity_id, [])
            if rows and self.rows[rows[-1]] == attributes:
                continue
            rows.append(len(self.rows))
            self._times.setdefault(entity_id, []).append(time_ms)
            self.rows.append(attributes)

    def __len__(self) -> int:
        """Return how many entities there are."""
        return len(self._row_of)

    def row(self, entity_id: str, time_ms: int) -> int:
        """Return which of `rows` was known of an entity at a moment: written before its second began."""
        times = self._times.get(entity_id)
        if times is None:
            return 0
        known = bisect_left(times, time_ms // 1000 * 1000)
        return self._row_of[entity_id][known - 1] if known else 0

    def written(self) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Yield each entity with its versions in the order of time: (Unix ms or ALWAYS_MS, which of `rows`)."""
        for entity_id, rows in self._row_of.items():
            yield entity_id, list(zip(self._times[entity_id], rows, strict=True))

    def ids(self) -> list[str]:
        """Return the entities, in the order in which they were first written."""
        return list(self._row_of)

    def last(self, entity_id: str) -> Attributes:
        """Return what was written of an entity last; nothing of one that is not known."""
        return self.rows[self._row_of[entity_id][-1]] if entity_id in self._row_of else NONE

    def digest(self) -> bytes:
        """Return a hash of all versions."""
        whole = hashlib.sha256()
        for entity_id, versions in self.written():
            whole.update(repr((entity_id, [(time_ms, repr(self.rows[row])) for time_ms, row in versions])).encode())
        return whole.digest()

    def with_fixed(self, field: str, values: Mapping[str, Sequence[str]]) -> Versions:
        """Return these versions with one more attribute, which was always there; an attribute of that name that they have stays."""
        written = [(entity_id, ALWAYS_MS, {field: value}) for entity_id, value in values.items()]
        for entity_id, rows in self._row_of.items():
            fixed: Attributes = {field: values[entity_id]} if entity_id in values else NONE
            moments = zip(repeat(entity_id), self._times[entity_id], rows, strict=False)
            written += [(one, time_ms, {**fixed, **self.rows[row]}) for one, time_ms, row in moments]
        return Versions(written)


class AttributeHistory:
    """The declared features of any request of a recorded history."""

    def __init__(self, plan: Plan, users: Versions, items: Versions) -> None:
        """Compute what depends on an item alone, for all versions of all items. Raises WrongValue."""
        self._plan, self._users, self._items = plan, users, items
        self._of_items = plan.items(items.rows)

    def declared(self, interaction: Interaction, item_ids: Sequence[str], history: Sequence[HistoryEntry] = ()) -> Declared:
        """Return the columns and keys of a request of the interaction's user and context, at its time. Raises WrongValue.

        Args:
            interaction: whose time the request has.
            item_ids: the candidates.
            history: the user's events that were known then, newest first. Their items have the attributes that were known then, too.
        """
        time_ms = interaction.time_ms
        events = self._plan.events([self._users.rows[self._users.row(interaction.user_id, time_ms)]], [interaction.context])
        kept = history[: self._plan.longest_sequence]
        past = past_of(kept, time_ms, self._of_items, self._rows([entry.item_id for entry in kept], time_ms))
        return Declared.of_rows(self._plan, events, self._of_items, self._rows(item_ids, time_ms), past, item_ids)

    def _rows(self, item_ids: Sequence[str], time_ms: int) -> Int64Array:
        return np.fromiter((self._items.row(item_id, time_ms) for item_id in item_ids), dtype=np.int64, count=len(item_ids))


def known_shares(plan: Plan, interactions: Sequence[Interaction], users: Versions, items: Versions) -> dict[str, float]:
    """Return, for each "side:field" that the declared features read, of which share of the events it was known when they happened.

    Of many events, evenly spaced ones are looked at. A share near 0 says that a column has another meaning in the file than in the spec.
    """
    step = -(-len(interactions) // _MAX_LOOKED_AT) or 1
    looked_at = [interactions[at] for at in range(0, len(interactions), step)]
    fields = dict.fromkeys((one.side, one.field) for one in plan.wanted)

    def is_known(side: str, field: str, one: Interaction) -> bool:
        if side == "context":
            return field in one.context
        versions, entity_id = (users, one.user_id) if side == "user" else (items, one.item_id)
        value = versions.rows[versions.row(entity_id, one.time_ms)].get(field, ())
        # Categories that no file gives are an empty list.
        return not (isinstance(value, list | tuple) and not value)

    return {f"{side}:{field}": sum(is_known(side, field, one) for one in looked_at) / max(len(looked_at), 1) for side, field in fields}
