"""Names of the numbers that a network takes: by these, weights stay with their columns when columns are added, dropped or moved.

Which columns there are is known when a state is read, perhaps one of another feature spec; so names are a function of the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from services.common.ranker.feature_spec import FeatureSpec

SEQUENCE_PREFIX = "of_"
"""Before a sequence's name in its weights' names, `sequence_pools.of_NAME.`: a module may not be called as a method of its container."""


class Columns(NamedTuple):
    """FeatureSpec.user_inputs and item_inputs: the columns of features, and the pooled rows of keyed ones."""

    user: tuple[str, ...]
    item: tuple[str, ...]


Names = Callable[[Columns], tuple[str, ...]]
"""From the columns to the names of numbers side by side."""

Axes = tuple[Names, ...]
"""Of one weight, axis by axis: the names of the inputs that lie along it, before whatever else lies there."""


def columns_of(spec: FeatureSpec) -> Columns:
    """Return the columns of a feature spec."""
    return Columns(spec.user_inputs, spec.item_inputs)


def nothing(_columns: Columns) -> tuple[str, ...]:
    """Name nothing: no input lies there."""
    return ()


def user_columns(columns: Columns) -> tuple[str, ...]:
    """Name the user's features."""
    return tuple(f"user {name}" for name in columns.user)


def item_columns(columns: Columns) -> tuple[str, ...]:
    """Name the item's features."""
    return tuple(f"item {name}" for name in columns.item)


def numbers(part: str, count: int) -> Names:
    """Name `count` numbers that are there whatever the columns are."""
    names = tuple(f"{part}.{at}" for at in range(count))
    return lambda _columns: names


def together(*parts: Names) -> Names:
    """Name the parts, one behind the other."""
    return lambda columns: tuple(name for part in parts for name in part(columns))
