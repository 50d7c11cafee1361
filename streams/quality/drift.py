"""References of the features of each variant, and how far a window is from them. Pure; psi.py has the arithmetic.

A variant's reference is its first windows with enough requests; it is then fixed until the reference file is removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streams.quality.psi import FeatureReference, Float32Array

FORMAT = 1
_ROWS_PER_REQUEST = 20
# With windows of 10 s, an hour: a variant that is gone so long may give its place to another.
_IDLE_WINDOWS = 360


class Rows:
    """Rows of one window, by group ("user", "item", "scores", …): float32 matrices with one column per feature."""

    def __init__(self) -> None:
        """Empty."""
        self._parts: dict[str, list[Float32Array]] = {}
        self._counts: dict[str, int] = {}
        self._requests: dict[str, int] = {}

    def add(self, group: str, rows: Float32Array, limit: int) -> None:
        """Add the first 20 rows of one request, unless the group has `limit` rows already. A vector counts as one column."""
        if self._counts.get(group, 0) >= limit:
            return
        matrix = rows.reshape(len(rows), -1)[:_ROWS_PER_REQUEST]
        self._parts.setdefault(group, []).append(matrix)
        self._counts[group] = self._counts.get(group, 0) + len(matrix)
        self._requests[group] = self._requests.get(group, 0) + 1

    def num_requests(self, names: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Return of how many requests the values of each feature are."""
        return {name: self._requests[group] for group in self._parts for name in names.get(group, ())}

    def columns(self, names: Mapping[str, Sequence[str]]) -> dict[str, Float32Array]:
        """Return the values of each feature by its name; a group whose width is not that of its names is left out."""
        found: dict[str, Float32Array] = {}
        for group, parts in self._parts.items():
            widths = {part.shape[1] for part in parts}
            if widths != {len(names.get(group, ()))}:
                continue
            matrix = np.concatenate(parts).astype(np.float32)
            found |= {name: matrix[:, column] for column, name in enumerate(names[group])}
        return found


@dataclass(slots=True)
class _Building:
    """A reference that is not complete yet."""

    windows: int = 0
    requests: int = 0
    columns: dict[str, list[Float32Array]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A complete one; `requests` are those that it was made from."""

    requests: int
    features: Mapping[str, FeatureReference]


class Drift:
    """The references of all variants.

    Attributes:
        num_completed: counts up by one whenever a reference is complete, so that the caller may save it.
        num_left_out: variants of the present window that found no place.
    """

    def __init__(
        self, names: Mapping[str, Sequence[str]], *, schema_hash: str, num_windows: int, num_bins: int, limit: float, max_references: int
    ) -> None:
        """Compare nothing yet.

        Args:
            names: names of the columns of each group of rows.
            schema_hash: of the feature spec; a saved reference of another one is refused.
            num_windows: windows per reference.
            num_bins: bins per feature.
            limit: a PSI above this, and above chance, is drift.
            max_references: variants that are compared; a further one gets the place of the one that was compared longest ago, if that is
                360 windows ago.
        """
        self.num_completed, self.num_left_out = 0, 0
        self._names, self._schema_hash, self._max = names, schema_hash, max_references
        self._num_windows, self._num_bins, self._limit = num_windows, num_bins, limit
        self._building: dict[str, _Building] = {}
        self._references: dict[str, _Reference] = {}
        self._window = 0
        self._last_seen: dict[str, int] = {}  # the window; of every name in the two above

    def end_window(self) -> None:
        """Count a window."""
        self._window += 1
        self.num_left_out = 0

    def compare(self, kind: str, variant: str, rows: Rows, num_requests: int) -> dict[str, tuple[float, float]]:
        """Return (PSI, limit) by feature; nothing while the variant's reference is being built, which this window then adds to."""
        name = f"{kind}/{variant}"
        columns = rows.columns(self._names)
        if not columns:
            return {}
        if not self._has_place(name):
            self.num_left_out += 1
            return {}
        self._last_seen[name] = self._window
        # Chance is that of the requests that gave values: one that was degraded has none.
        given = rows.num_requests(self._names)
        reference = self._references.get(name)
        if reference is None:
            self._build(name, columns, min(num_requests, *(given[feature] for feature in columns)))
            return {}
        found = {}
        for feature, values_N in columns.items():
            known = reference.features.get(feature)
            if known is not None and len(values_N):
                limit = max(self._limit, known.chance(min(num_requests, given[feature]), reference.requests))
                found[feature] = (known.psi(values_N), limit)
        return found

    def _has_place(self, name: str) -> bool:
        """Whether the variant has a reference, begun or complete, or room for one; the longest idle gives way."""
        if name in self._last_seen or len(self._last_seen) < self._max:
            return True
        idlest = min(self._last_seen, key=self._last_seen.__getitem__)
        if self._window - self._last_seen[idlest] < _IDLE_WINDOWS:
            return False
        del self._last_seen[idlest]
        self._references.pop(idlest, None)
        self._building.pop(idlest, None)
        return True

    def _build(self, name: str, columns: Mapping[str, Float32Array], num_requests: int) -> None:
        building = self._building.setdefault(name, _Building())
        building.windows += 1
        building.requests += num_requests
        for feature, values_N in columns.items():
            building.columns.setdefault(feature, []).append(values_N)
        if building.windows < self._num_windows:
            return
        del self._building[name]
        gathered = {feature: np.concatenate(parts) for feature, parts in building.columns.items()}
        features = {feature: FeatureReference.of(finite, self._num_bins) for feature, finite in _finite(gathered).items()}
        self._references[name] = _Reference(building.requests, features)
        self.num_completed += 1

    def to_json(self) -> dict[str, Any]:
        """Return the complete references as `load` reads them."""
        references = {
            name: {"requests": reference.requests, "features": {key: each.to_json() for key, each in reference.features.items()}}
            for name, reference in self._references.items()
        }
        return {"format": FORMAT, "schema_hash": self._schema_hash, "references": references}

    def load(self, raw: Any) -> int:
        """Take saved references over and return how many.

        Raises:
            ValueError: something else, or of another feature spec; says what.
        """
        try:
            if (raw["format"], raw["schema_hash"]) != (FORMAT, self._schema_hash):
                raise ValueError(
                    f"format {raw['format']} of feature spec {raw['schema_hash']}; here they are {FORMAT} and {self._schema_hash}"
                )
            loaded = {
                name: _Reference(
                    max(1, int(body["requests"])), {key: FeatureReference.from_json(each) for key, each in body["features"].items()}
                )
                for name, body in raw["references"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no saved reference: {error!r}") from error
        self._references |= loaded
        self._last_seen |= dict.fromkeys(loaded, self._window)
        return len(loaded)


def _finite(columns: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    cleaned = {name: values_N[np.isfinite(values_N)] for name, values_N in columns.items()}
    return {name: values_N for name, values_N in cleaned.items() if len(values_N)}
