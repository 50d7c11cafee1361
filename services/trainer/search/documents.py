"""Values of a feature spec by dotted key: `tables.user.dim`, `network.hidden`, `features.city.embedding_dim`. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

ABSENT = object()
"""What stands at a key that a document does not have."""


def value_at(document: Mapping[str, Any], key: str) -> Any:
    """Return what stands at a key; ABSENT where nothing does."""
    place: Any = document
    for name in key.split("."):
        place = _inside(place, name)
        if place is ABSENT:
            return ABSENT
    return place


def with_values(document: Document, values: Mapping[str, Any]) -> Document:
    """Return a copy of a document in which other values stand at some keys; `network` before the keys inside it.

    Raises:
        KeyError: a key names a feature that the document does not have.
    """
    changed = copy.deepcopy(document)
    for key in sorted(values, key=lambda key: key.count(".")):
        *path, last = key.split(".")
        place: Any = changed
        for depth, name in enumerate(path):
            inside = _inside(place, name)
            if depth == 0 and name == "network" and isinstance(inside, str):
                inside = place[name] = {"name": inside}
            if inside is ABSENT or inside is None:
                if not isinstance(place, dict) or name == "features":
                    raise KeyError(key)
                inside = place[name] = {}
            place = inside
        place[last] = copy.deepcopy(values[key])
    return changed


def _inside(place: Any, name: str) -> Any:
    if isinstance(place, Mapping):
        return place.get(name, ABSENT)
    if isinstance(place, list):
        # The list `features`: each entry is a mapping of one kind, and has a name.
        inner = [next(iter(one.values()), None) for one in place if isinstance(one, Mapping)]
        return next((one for one in inner if isinstance(one, dict) and one.get("feature_name") == name), ABSENT)
    return ABSENT
