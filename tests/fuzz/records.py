"""Records that are nearly right: what real writers send, damaged, and JSON of the right names with the wrong contents."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from tests.fuzzing import Damage

Triple = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]

_TYPES = (
    "application/json",
    "application/protobuf",
    "application/cloudevents+json",
    "application/octet-stream",
    "text/plain",
    "",
    "\ufffd",
)
_NAMES = (
    "item_id",
    "itemId",
    "title",
    "categories",
    "attributes",
    "updated_at_ms",
    "feedback_id",
    "request_id",
    "user_id",
    "kind",
    "value",
)
_NAMES += ("accepted_at_ms", "before", "after", "op", "source", "payload", "schema", "__deleted", "specversion", "id", "type", "data")
_NAMES += ("data_base64", "datacontenttype")
_ODD = (None, True, False, 0, -1, 1001, 2**63, 1e308, "", "1001", "true", "null", "\ud800", "x" * 200, "[1]", "{}", "{")
_ODD += ("__debezium_unavailable_value",)


def nearly_right(originals: Iterable[Triple], count: int, *, seed: int) -> Iterator[Triple]:
    """Yield `count` records."""
    known, damage = list(originals), Damage(seed)
    rng, values = damage.random, [value or b"" for _, value, _ in known]
    for _ in range(count):
        key, value, headers = rng.choice(known)
        choice = rng.randrange(6)
        if choice == 0:
            value = json.dumps(odd_json(rng, 0)).encode("utf-8", "surrogatepass")
        elif choice == 1:
            key = json.dumps(odd_json(rng, 0)).encode("utf-8", "surrogatepass")
            value = rng.choice((None, b"null", value))
        elif choice == 2:
            headers = [("content-type", rng.choice(_TYPES).encode())]
        else:
            value = damage.of_bytes(values)
        yield key, value, headers


def odd_json(rng: random.Random, depth: int) -> Any:
    """Return a JSON value made of names that readers look at."""
    choice = rng.randrange(5)
    if choice == 0 or depth > 3:
        return rng.choice(_ODD)
    if choice == 1:
        return [odd_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(_NAMES): odd_json(rng, depth + 1) for _ in range(rng.randrange(6))}
