"""What the features of a spec may ask for together: tables, numbers of pooled rows, sequences. Pure."""

from __future__ import annotations

from services.common.ranker.declared.graph import BadFeatures
from services.common.ranker.declared.plan import Plan
from services.common.ranker.spec_parts import MAX_BLOOM_COUNT

# Features with rows of tables, of a side: an exposure block counts them in one byte.
MAX_KEYED = 255
# Numbers of pooled rows that a network takes of a side.
MAX_POOLED = 2_048
MAX_SEQUENCES = 8


def check(plan: Plan, *, history_length: int) -> None:
    """Refuse what no block, no state and no network can hold.

    Args:
        plan: of the features.
        history_length: events that a user's state holds.
    Raises:
        BadFeatures: names the feature or the table, what is there and what is allowed.
    """
    _check_sequences(plan, history_length)
    taken = sorted({"user", "item"} & set(plan.tables))
    if taken:
        raise BadFeatures(f"features: the table {taken[0]!r} holds the {taken[0]}s' own rows; give the feature another embedding_name")
    for name, keys in plan.tables.items():
        if keys.max_element_size is not None and (keys.filter_freq or 1) > MAX_BLOOM_COUNT:
            raise BadFeatures(f"features: table {name!r}: a Bloom filter counts to {MAX_BLOOM_COUNT}: lower filter_freq {keys.filter_freq}")
    of_sequences = sum(len(one.columns) for one in plan.sequences)
    for side, keyed, more in (("user", plan.user_keyed, 0), ("item", plan.item_keyed, of_sequences)):
        if len(keyed) > MAX_KEYED:
            raise BadFeatures(f"features: {len(keyed)} {side} features with embedding_dim; an exposure block holds {MAX_KEYED} a side")
        width = sum(one.dim for one in keyed) + more
        if width > MAX_POOLED:
            twice = " (a part of a sequence counts twice if candidates have it too)" if more else ""
            raise BadFeatures(
                f"features: embedding_dim of all {side} features is {width} together; at most {MAX_POOLED} go into a network{twice}"
            )


def _check_sequences(plan: Plan, history_length: int) -> None:
    for one in plan.sequences:
        if one.length > history_length:
            raise BadFeatures(
                f"features: {one.name!r} has sequence_length {one.length}, and history.length is {history_length}: a user's state holds no "
                "more events; lower the one or raise the other"
            )
    if len(plan.sequences) > MAX_SEQUENCES:
        raise BadFeatures(f"features: {len(plan.sequences)} sequences; at most {MAX_SEQUENCES} are allowed")
