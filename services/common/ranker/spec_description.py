"""The description of a feature spec, as an array of the artifacts that were made under it; what another spec may keep of those. Pure."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.feature_spec import FEATURE_CODE_VERSION, FeatureSpec
from services.common.ranker.network_spec import DcnDinSpec

SCHEMA_ARRAY = "learner/schema"


def described(spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    """Return the description of a spec as an array, uint8 [N]."""
    return np.frombuffer(spec.meaning.encode(), np.uint8).copy()


@dataclass(frozen=True, slots=True)
class Description:
    """What an artifact says about the feature spec that it was made under. Build it with `of`."""

    code_version: object
    parts: dict[str, Any]
    user_columns: tuple[str, ...]
    item_columns: tuple[str, ...]
    """As `user_columns`: FeatureSpec.user_inputs and item_inputs."""
    half_lives_events: tuple[float, ...]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Description:
        """Read SCHEMA_ARRAY of an artifact.

        Raises:
            CorruptArtifact: it is none.
        """
        try:
            code_version, parts, user_columns, item_columns = json.loads(array.tobytes())
            parts["kinds"].keys()
            half_lives = tuple(float(one) for one in parts["counters"]["half_lives_events"])
            return cls(code_version, parts, tuple(map(str, user_columns)), tuple(map(str, item_columns)), half_lives)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise CorruptArtifact(f"the description of its feature spec cannot be understood: {error}") from error

    @property
    def feature_tables(self) -> dict[str, int]:
        """Floats of a row by table, of the tables of declared features."""
        entries = [next(iter(one.values())) for one in self.parts.get("features", [])]
        keyed = {one["feature_name"]: one for one in entries if "embedding_dim" in one and not one.get("stub_type", False)}
        for sequence in (one for one in entries if "features" in one):
            parts = [next(iter(one.values())) for one in sequence["features"]]
            keyed |= {f"{sequence['feature_name']}__{part['feature_name']}": part for part in parts}
        return {one.get("embedding_name", name): one["embedding_dim"] for name, one in keyed.items()}

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the declared sequences, in the order of the spec."""
        return tuple(one["sequence_feature"]["feature_name"] for one in self.parts.get("features", []) if "sequence_feature" in one)

    def differences(self, spec: FeatureSpec, *, free: Container[str]) -> list[str]:
        """Return what gives stored numbers another meaning under `spec`, in words.

        Args:
            spec: the present one.
            free: parts of the spec that may differ; the range of a kind that both have may not. Declared features may come and go, but not
                change, unless `features` is free.
        """
        # A description of the first network in its default sizes does not name it: it was the only one.
        default = {"network": DcnDinSpec().model_dump(mode="json")}
        old, new = default | self.parts, default | json.loads(spec.meaning)[1]
        found = [f"the feature code is of version {self.code_version}, here {FEATURE_CODE_VERSION}"]
        found = found if self.code_version != FEATURE_CODE_VERSION else []
        found += [
            f"{key} was {_short(old.get(key))} and is {_short(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if key not in free and key != "features" and old.get(key) != new.get(key)
        ]
        if "features" not in free:
            found += _changed_features(old.get("features", []), new.get("features", []))
        both = sorted(old["kinds"].keys() & new["kinds"].keys())
        return found + [
            f"kinds.{kind} was {_short(old['kinds'][kind])} and is {_short(new['kinds'][kind])}"
            for kind in both
            if old["kinds"][kind] != new["kinds"][kind]
        ]


def _changed_features(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """Return what changed in features that both have, by name."""
    before, now = ({next(iter(one.values()))["feature_name"]: one for one in features} for features in (old, new))
    changed = [name for name in now if name in before and before[name] != now[name]]
    return [f"features.{name} was {_short(before[name])} and is {_short(now[name])} (give it another name)" for name in changed]


def _short(value: object) -> str:
    return json.dumps(value, sort_keys=True)[:200]
