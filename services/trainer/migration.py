"""What a learner's state keeps when the feature spec changed: rows as they are, dense weights by the names of the network's inputs.

A state carries the description of the spec under which it was learned (SCHEMA_ARRAY). Columns may be added, dropped and moved: the
weights of columns that stay go with them, those of new ones are zero, so that a spec that only adds columns scores as before until it
learns. Whatever else would give stored numbers another meaning (dims, tasks, the scale of a kind's values, the feature code) is refused by
name. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import network_inputs
from services.common.ranker.spec_description import SCHEMA_ARRAY, Description, described

Arrays = dict[str, npt.NDArray[Any]]

_MOMENTS = ("dense_opt/first_moment", "dense_opt/second_moment")
# Parts of the spec that change which columns there are, or how much history there is, but not what a stored number means.
_FREE = ("counters", "history", "kinds")


class Weight(NamedTuple):
    """A dense weight of the present network: its shape, and the axes along which the network's inputs lie, before what else lies there."""

    shape: tuple[int, ...]
    input_axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What a migration did with the columns."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as a part of a sentence."""
        added = f"weights of the new columns {', '.join(self.added)} begin at zero" if self.added else "no column is new"
        dropped = f"what was learned of {', '.join(self.dropped)} is gone" if self.dropped else "none is gone"
        return f"all rows are kept; {added}; {dropped}"


def migrated(arrays: Mapping[str, npt.NDArray[Any]], spec: FeatureSpec, weights: Mapping[str, Weight]) -> tuple[Arrays, Change]:
    """Return a learner's state, learned under the spec that it carries, as a state under `spec`.

    Args:
        arrays: the state; it has SCHEMA_ARRAY.
        spec: the present one.
        weights: of the present network, by name, in the order in which the optimizer's moments hold them.
    Raises:
        ConfigurationError: the specs differ in what cannot be kept; names it.
        CorruptArtifact: the description or an array is not what a learner saves.
    """
    old_inputs, new_inputs = _inputs_before(arrays, spec), network_inputs(spec.num_content_dims, spec.user_columns, spec.item_columns)
    at = {name: position for position, name in enumerate(old_inputs)}
    stays = [(position, at[name]) for position, name in enumerate(new_inputs) if name in at]
    moved = _Moved(len(old_inputs), len(new_inputs), np.array([new for new, _ in stays]), np.array([old for _, old in stays]))
    result = dict(arrays)
    try:
        sizes = [arrays[f"dense/{name}"].size for name in weights]
        parts = {moment: np.split(arrays[moment], np.cumsum(sizes)[:-1]) for moment in _MOMENTS}
        for name, weight in weights.items():
            result[f"dense/{name}"] = moved.of(arrays[f"dense/{name}"], weight)
        for moment in _MOMENTS:
            pairs = zip(parts[moment], weights.items(), strict=True)
            old = (moved.of(part.reshape(arrays[f"dense/{name}"].shape), weight) for part, (name, weight) in pairs)
            result[moment] = np.concatenate([part.ravel() for part in old])
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptArtifact(f"learner: the dense weights are not of the feature spec that the state carries: {error}") from error
    result[SCHEMA_ARRAY] = described(spec)
    added = tuple(name for name in new_inputs if name not in at)
    return result, Change(added, tuple(name for name in old_inputs if name not in set(new_inputs)))


class _Moved(NamedTuple):
    num_old: int
    num_new: int
    new_at: npt.NDArray[np.int64]
    old_at: npt.NDArray[np.int64]

    def of(self, old: npt.NDArray[Any], weight: Weight) -> npt.NDArray[np.float32]:
        """Return float32 of weight.shape: what stays of `old` in its new place, zero elsewhere."""
        new = np.zeros(weight.shape, np.float32)
        places: list[list[npt.NDArray[np.int64]]] = [[], []]
        for axis, size in enumerate(weight.shape):
            if axis in weight.input_axes:
                behind = np.arange(size - self.num_new)
                if old.shape[axis] - self.num_old != behind.size:
                    raise ValueError(f"shape {old.shape} does not become {weight.shape}")
                places[0].append(np.concatenate([self.new_at, self.num_new + behind]))
                places[1].append(np.concatenate([self.old_at, self.num_old + behind]))
            elif old.shape[axis] != size:
                raise ValueError(f"shape {old.shape} does not become {weight.shape}")
            else:
                places[0].append(np.arange(size))
                places[1].append(np.arange(size))
        new[np.ix_(*places[0])] = old[np.ix_(*places[1])]
        return new


def _inputs_before(arrays: Mapping[str, npt.NDArray[Any]], spec: FeatureSpec) -> Sequence[str]:
    """Return the names of the inputs of the network that learned this state. Refuses, by name, what cannot be kept."""
    try:
        description = Description.of(arrays[SCHEMA_ARRAY])
    except CorruptArtifact as error:
        raise CorruptArtifact(f"learner: {error}") from error
    different = description.differences(spec, free=_FREE)
    if different:
        raise ConfigurationError(
            f"weights learned under another feature spec cannot be kept: {'; '.join(different)}: restore that feature spec, or set "
            "TUNEMESH_ARTIFACTS_URL to a new folder and train a base under the new one"
        )
    return network_inputs(spec.num_content_dims, description.user_columns, description.item_columns)
