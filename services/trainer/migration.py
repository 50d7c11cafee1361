"""What a learner's state keeps when the feature spec changed: rows as they are, dense weights by the names of the network's inputs.

A state carries the description of the spec under which it was learned (SCHEMA_ARRAY). Columns may be added, dropped and moved: the
weights of columns that stay go with them, those of new ones are zero, so that a spec that only adds columns scores as before until it
learns. Tables of declared features come and go with these; one that is new, or has rows of another length, begins empty. Whatever else
would give stored numbers another meaning (dims, tasks, the network, the scale of a kind's values, the feature code) is refused by name.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.names import SEQUENCE_PREFIX, Axes, Columns, Names, columns_of
from services.common.ranker.spec_description import SCHEMA_ARRAY, Description, described

Arrays = dict[str, npt.NDArray[Any]]

_MOMENTS = ("dense_opt/first_moment", "dense_opt/second_moment")
# Parts of the spec that change which columns there are, or how much history there is, but not what a stored number means. Declared features
# may come and go as well; one that changes is refused.
_FREE = ("counters", "format", "history", "kinds")
_OF_SEQUENCES = "sequence_pools."
_WHAT_TO_DO = "restore that feature spec, or set TUNEMESH_ARTIFACTS_URL to a new folder and train a base under the new one"


class Weight(NamedTuple):
    """A dense weight of the present network: its shape, and the inputs along its axes; None where the network does not say."""

    shape: tuple[int, ...]
    input_axes: Axes | None
    initial: npt.NDArray[np.float32] | None = None
    """Of a weight that only comes with a declared sequence."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a migration did with the columns."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]
    new_tables: tuple[str, ...] = ()
    """Of which the state has no rows that could be kept."""
    dropped_tables: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as a part of a sentence."""
        added = f"weights of the new columns {', '.join(self.added)} begin at zero" if self.added else "no column is new"
        dropped = f"what was learned of {', '.join(self.dropped)} is gone" if self.dropped else "none is gone"
        emptied = f", but those of {', '.join(self.dropped_tables)} are gone" if self.dropped_tables else ""
        begun = f"; the tables {', '.join(self.new_tables)} begin empty" if self.new_tables else ""
        return f"all rows are kept{emptied}; {added}; {dropped}{begun}"


def migrated(arrays: Mapping[str, npt.NDArray[Any]], spec: FeatureSpec, weights: Mapping[str, Weight]) -> tuple[Arrays, Change]:
    """Return a learner's state, learned under the spec that it carries, as a state under `spec`.

    Args:
        arrays: the state; it has SCHEMA_ARRAY.
        spec: the present one.
        weights: of the present network, by name, in the order in which the optimizer's moments hold them.
    Raises:
        ConfigurationError: the specs differ in what cannot be kept, or the network does not say which columns a weight takes; names it.
        CorruptArtifact: the description or an array is not what a learner saves.
    """
    before = _description(arrays, spec)
    moved = _Moved(Columns(before.user_columns, before.item_columns), columns_of(spec))
    if moved.old != moved.new:
        _refuse_unnamed(weights)
    result = dict(arrays)
    try:
        old = _old_weights(arrays, before, weights)
        sizes = [arrays[f"dense/{name}"].size for name in old]
        parts = {moment: dict(zip(old, np.split(arrays[moment], np.cumsum(sizes)[:-1]), strict=True)) for moment in _MOMENTS}
        for name in old:
            if name not in weights:
                del result[f"dense/{name}"]
        for name, weight in weights.items():
            if name not in old and weight.initial is not None:
                result[f"dense/{name}"] = weight.initial
            else:
                result[f"dense/{name}"] = moved.of(arrays[f"dense/{name}"], weight, name)
        for moment in _MOMENTS:
            found = [
                moved.of(parts[moment][name].reshape(arrays[f"dense/{name}"].shape), weight, name)
                if name in old
                else np.zeros(weight.shape, np.float32)
                for name, weight in weights.items()
            ]
            result[moment] = np.concatenate([part.ravel() for part in found])
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptArtifact(f"learner: the dense weights are not of the feature spec that the state carries: {error}") from error
    result[SCHEMA_ARRAY] = described(spec)
    every = [names for weight in weights.values() for names in weight.input_axes or ()]
    old_inputs, new_inputs = (dict.fromkeys(name for names in every for name in names(columns)) for columns in (moved.old, moved.new))
    added = tuple(name for name in new_inputs if name not in old_inputs)
    old_tables, new_tables = before.feature_tables, {name: table.embedding_dim for name, table in spec.plan.tables.items()}
    return result, Change(
        added,
        tuple(name for name in old_inputs if name not in new_inputs),
        tuple(name for name, dim in new_tables.items() if old_tables.get(name) != dim),
        tuple(name for name in old_tables if old_tables[name] != new_tables.get(name)),
    )


def _old_weights(arrays: Mapping[str, npt.NDArray[Any]], before: Description, weights: Mapping[str, Weight]) -> list[str]:
    """Return the names of a state's weights in the order in which its moments hold them: those of sequences last, as the spec had these."""
    old = [name for name in weights if not name.startswith(_OF_SEQUENCES)]
    for sequence in before.sequences:
        begin = f"{_OF_SEQUENCES}{SEQUENCE_PREFIX}{sequence}."
        kept = [name for name in weights if name.startswith(begin)]
        # Of one that is dropped the order does not matter: nothing of it stays.
        old += kept or [name.removeprefix("dense/") for name in arrays if name.startswith(f"dense/{begin}")]
    return old


class _Moved(NamedTuple):
    old: Columns
    new: Columns

    def of(self, old: npt.NDArray[Any], weight: Weight, name: str) -> npt.NDArray[np.float32]:
        """Return float32 of weight.shape: what stays of `old` in its new place, zero elsewhere."""
        new = np.zeros(weight.shape, np.float32)
        names_by_axis = weight.input_axes or (None,) * new.ndim
        if old.ndim != new.ndim or len(names_by_axis) != new.ndim:
            raise ValueError(f"{name}: shape {old.shape} does not become {weight.shape}")
        places = [self._places(names, *sizes) for names, *sizes in zip(names_by_axis, old.shape, weight.shape, strict=True)]
        if any(place is None for place in places):
            raise ValueError(f"{name}: shape {old.shape} does not become {weight.shape}")
        old_at, new_at = zip(*(place for place in places if place is not None), strict=True)
        new[np.ix_(*new_at)] = old[np.ix_(*old_at)]
        return new

    def _places(self, names: Names | None, old_size: int, new_size: int) -> tuple[list[int], list[int]] | None:
        """Return where along an axis of these sizes that which stays lies, in the old and in the new weight; None when they do not fit."""
        old_names, new_names = (names(columns) if names else () for columns in (self.old, self.new))
        behind = new_size - len(new_names)
        if behind < 0 or old_size - len(old_names) != behind:
            return None
        at = {name: position for position, name in enumerate(old_names)}
        stays = [(at[name], position) for position, name in enumerate(new_names) if name in at]
        stays += [(len(old_names) + position, len(new_names) + position) for position in range(behind)]
        return [old for old, _ in stays], [new for _, new in stays]


def _refuse_unnamed(weights: Mapping[str, Weight]) -> None:
    unnamed = [name for name, weight in weights.items() if weight.input_axes is None]
    if unnamed:
        raise ConfigurationError(
            f"weights learned under other columns cannot be kept: the network does not say which columns {', '.join(unnamed)} take "
            f"(RankerNetwork.input_axes): {_WHAT_TO_DO}"
        )


def _description(arrays: Mapping[str, npt.NDArray[Any]], spec: FeatureSpec) -> Description:
    """Return under what this state was learned. Refuses, by name, what cannot be kept."""
    try:
        description = Description.of(arrays[SCHEMA_ARRAY])
    except CorruptArtifact as error:
        raise CorruptArtifact(f"learner: {error}") from error
    different = description.differences(spec, free=_FREE)
    if different:
        raise ConfigurationError(f"weights learned under another feature spec cannot be kept: {'; '.join(different)}: {_WHAT_TO_DO}")
    return description
