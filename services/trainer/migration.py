"""What a learner's state keeps when the feature spec changed: rows as they are, dense weights by the names of the network's inputs.

A state carries the description of the spec under which it was learned (SCHEMA_ARRAY). Columns may be added, dropped and moved: the
weights of columns that stay go with them, those of new ones are zero, so that a spec that only adds columns scores as before until it
learns. Whatever else would give stored numbers another meaning (dims, tasks, the scale of a kind's values, the feature code) is refused by
name. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import network_inputs

Arrays = dict[str, npt.NDArray[Any]]

SCHEMA_ARRAY = "learner/schema"
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


def described(spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    """Return the description of a spec as an array, uint8 [N]."""
    return np.frombuffer(spec.meaning.encode(), np.uint8).copy()


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
        code_version, meaning, user_columns, item_columns = json.loads(arrays[SCHEMA_ARRAY].tobytes())
        columns = [[str(name) for name in names] for names in (user_columns, item_columns)]
        different = _different(meaning, json.loads(spec.meaning)[1])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CorruptArtifact(f"learner: the description of its feature spec cannot be understood: {error}") from error
    present_version = json.loads(spec.meaning)[0]
    if code_version != present_version:
        different = [f"the feature code is of version {code_version}, here {present_version}", *different]
    if different:
        raise ConfigurationError(
            f"weights learned under another feature spec cannot be kept: {'; '.join(different)}: restore that feature spec, or set "
            "TUNEMESH_ARTIFACTS_URL to a new folder and train a base under the new one"
        )
    return network_inputs(spec.num_content_dims, *columns)


def _different(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what gives stored numbers another meaning, in words."""
    found = [
        f"{key} was {_short(old.get(key))} and is {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE and old.get(key) != new.get(key)
    ]
    both = sorted(old["kinds"].keys() & new["kinds"].keys())
    return found + [
        f"kinds.{kind} was {_short(old['kinds'][kind])} and is {_short(new['kinds'][kind])}"
        for kind in both
        if old["kinds"][kind] != new["kinds"][kind]
    ]


def _short(value: object) -> str:
    return json.dumps(value, sort_keys=True)[:200]
