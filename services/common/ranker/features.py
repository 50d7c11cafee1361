"""Builds the feature rows of one request from the online states: by the recommender at request time, by the trainer for its batches.

Which columns there are and how they are computed: services.common.ranker.columns. Knows nothing about Redis, Kafka or the network.
Shapes: N items, L history length, U user columns, F item columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.ids import entity_key
from services.common.ranker.columns import ITEM_COLUMNS, USER_COLUMNS, ItemView, UserView
from services.common.ranker.declared.plan import NONE, Attributes, Part, Plan
from services.common.ranker.declared.row_keys import KeyedRows
from services.common.ranker.declared.sequences import Past
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import NO_TIME, GlobalState, HistoryEntry, UserState
from services.common.ranker.tallies import ItemMatrix

Float16Array = npt.NDArray[np.float16]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Features:
    """Everything but embeddings that the network sees of one request. What is logged is what is scored: float16 from here on."""

    user_key: int
    history_keys_L: Int64Array
    """Table keys of the latest items, newest first; shorter than the spec's length for new users."""
    history_values_L: Float16Array
    user_U: Float16Array
    """Columns as in FeatureSpec.user_columns."""
    items_NF: Float16Array
    """Columns as in FeatureSpec.item_columns."""
    keys: KeyedRows | None = None
    """Of the declared features that make rows of tables; None when the spec has none."""

    def only(self, rows: Sequence[int] | Int64Array) -> Features:
        """Return the features of these items only, in this order."""
        rows_N = np.asarray(rows, dtype=np.int64)
        return replace(self, items_NF=self.items_NF[rows_N], keys=None if self.keys is None else self.keys.only(rows_N))

    def __len__(self) -> int:
        return len(self.items_NF)


class Declared(NamedTuple):
    """The columns of one request that the spec's declared features make."""

    user_U: Float16Array
    """Plan.user_columns."""
    items_NF: Float16Array
    """Plan.item_columns."""
    keys: KeyedRows | None = None
    """`Plan.keyed`."""

    @classmethod
    def of(
        cls, plan: Plan, profile: Attributes, context: Attributes, items: Part, past: Past | None = None, item_ids: Sequence[str] = ()
    ) -> Declared:
        """Compute them.

        Args:
            plan: the spec's.
            profile: attributes of the user.
            context: attributes of the request.
            items: what the plan computed of each of the N items alone: `Plan.items`, or `ItemParts.part`.
            past: the user's latest events, `past_of`; only a plan without sequences needs none.
            item_ids: of the N items, likewise.
        Raises:
            WrongValue: an attribute is not of the type that the features read; names it.
            ValueError: the plan has sequences, and `past` or `item_ids` is missing.
        """
        return cls.of_rows(plan, plan.events([profile], [context]), items, np.arange(items.count, dtype=np.int64), past, item_ids)

    @classmethod
    def of_rows(
        cls, plan: Plan, events: Part, items: Part, rows_N: Int64Array, past: Past | None = None, item_ids: Sequence[str] = ()
    ) -> Declared:
        """Compute them of one event and of these rows of `items`. Errors: see `of`."""
        made = plan.run(events, items, np.zeros_like(rows_N), rows_N)
        if not plan.sequences:
            return cls(made.user_GU[0], made.items_BF, plan.keyed(made))
        if past is None or len(item_ids) != len(rows_N):
            raise ValueError(
                f"the sequence {plan.sequences[0].name!r} needs the user's latest events and the ids of all {len(rows_N)} items"
            )
        return cls(made.user_GU[0], made.items_BF, plan.keyed(made, plan.sequence_keys(past, item_ids, items, rows_N)))

    @classmethod
    def nothing(cls, plan: Plan, num_items: int) -> Declared:
        """Return the columns of a request of which nothing is known: no attribute, no id, no earlier event."""
        if not plan.features:
            return cls(np.empty(0, dtype=np.float16), np.empty((num_items, 0), dtype=np.float16))
        items = plan.items([NONE] * num_items)
        return cls.of(plan, NONE, NONE, items, Past.nothing(items.keys), [""] * num_items)


def past_of(history: Sequence[HistoryEntry], now_ms: int, items: Part, rows_L: Int64Array) -> Past:
    """Return a user's latest events as the sequences of a request read them.

    Args:
        history: of the user's state, newest first, L events.
        now_ms: when the request is made, Unix milliseconds.
        items: of the items of the events, perhaps among others.
        rows_L: which of them the item of each event is.
    """
    # A clock that is behind does not make an event of the future.
    ages = [math.nan if entry.time_ms == NO_TIME else max(0, now_ms - entry.time_ms) / 1e3 for entry in history]
    return Past(
        offsets=np.asarray([0, len(history)], dtype=np.int64),
        item_ids=[entry.item_id for entry in history],
        values_P=np.asarray([entry.value for entry in history], dtype=np.float64),
        ages_P=np.asarray(ages, dtype=np.float64),
        item_keys=items.keys,
        rows_P=rows_L,
    )


def build_features(
    spec: FeatureSpec,
    user_id: str,
    user: UserState | None,
    items: ItemMatrix,
    categories: Sequence[Sequence[str]],
    global_: GlobalState,
    declared: Declared | None = None,
) -> Features:
    """Return the feature rows of one request.

    Args:
        user: None for a user never seen before.
        items: N merged item states; all-zero rows are items never seen before.
        categories: of each of the N items; empty when the catalogue does not know it.
        global_: `merge_globals` of all partials.
        declared: the declared features' columns; None: no attribute is known.
    """
    if declared is None:
        declared = Declared.nothing(spec.plan, len(items))
    state = user or UserState()
    values = [entry.value for entry in state.history]
    user_view = UserView.of(state.tally, state.value_sq_sum, values, state.categories, global_.tally, global_.categories)
    item_view = ItemView.of(user_view, items, categories, spec.counters.half_lives_events)
    return Features(
        user_key=entity_key(user_id),
        history_keys_L=np.asarray([entity_key(entry.item_id) for entry in state.history], dtype=np.int64),
        history_values_L=np.asarray(values, dtype=np.float16),
        user_U=np.asarray([*(column.of(user_view) for column in USER_COLUMNS), *declared.user_U], dtype=np.float16),
        items_NF=_item_columns(item_view, len(spec.item_columns), declared.items_NF),
        keys=declared.keys,
    )


def _item_columns(view: ItemView, num_columns: int, declared_NF: Float16Array) -> Float16Array:
    """Return the item columns side by side; each is rounded as it is written, so no wider copy of all is made."""
    items_NF = np.empty((len(view.items), num_columns), dtype=np.float16)
    at = 0
    for column in ITEM_COLUMNS:
        values = column.of(view)
        width = 1 if values.ndim == 1 else values.shape[1]
        items_NF[:, at : at + width] = values.reshape(-1, width)
        at += width
    items_NF[:, at:] = declared_NF
    return items_NF
