"""The online features as records: their Redis keys, and how a base carries them as arrays.

Item and global states are kept as partials: one per source partition and one, BASE_PARTIAL, from the base. Knows nothing about what the
values mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact

BASE_PARTIAL = "b"


def user_key(user_id: str) -> str:
    """Redis key of a UserState."""
    return f"tm:u:{user_id}"


def profile_key(user_id: str) -> str:
    """Redis key of a user's packed profile (services.common.events.wire.profile)."""
    return f"tm:p:{user_id}"


def seen_key(user_id: str) -> str:
    """Redis key of the set of item ids that a user has acted on."""
    return f"tm:seen:{user_id}"


def item_key(item_id: str, partial: str) -> str:
    """Redis key of an ItemState; `partial` is BASE_PARTIAL or a partition number."""
    return f"tm:i:{item_id}:{partial}"


def item_keys(item_ids: Sequence[str], partials: Sequence[str]) -> list[str]:
    """Return `item_key` of every item and partial, all partials of an item side by side."""
    return [f"tm:i:{item_id}:{partial}" for item_id in item_ids for partial in partials]


def global_key(partial: str) -> str:
    """Redis key of a GlobalState."""
    return f"tm:g:{partial}"


def popular_key(partial: str) -> str:
    """Redis key of the packed popularity list (services.common.ranker.recall_state)."""
    return f"tm:pop:{partial}"


def neighbours_key(item_id: str, partial: str) -> str:
    """Redis key of an item's packed neighbours (services.common.ranker.recall_state)."""
    return f"tm:i2i:{item_id}:{partial}"


def partial_names(num_partitions: int) -> list[str]:
    """Return the names of all partials in the order in which `merge_item_bytes` expects them: base first."""
    return [BASE_PARTIAL, *(str(partition) for partition in range(num_partitions))]


def pack_records(records: Iterable[tuple[str, bytes]]) -> dict[str, npt.NDArray[np.generic]]:
    """Pack (Redis key, value) pairs into arrays for an artifact: names "keys", "key_ends", "values", "value_ends"."""
    keys, values = [], []
    for key, value in records:
        keys.append(key.encode())
        values.append(value)
    return {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "values": np.frombuffer(b"".join(values), dtype=np.uint8),
        "value_ends": np.cumsum([len(value) for value in values], dtype=np.int64),
    }


def unpack_records(arrays: Mapping[str, npt.NDArray[np.generic]]) -> list[tuple[str, bytes]]:
    """Invert `pack_records`.

    Raises:
        CorruptArtifact: the arrays do not fit each other.
    """
    keys, values = arrays["keys"].tobytes(), arrays["values"].tobytes()
    key_ends, value_ends = arrays["key_ends"].tolist(), arrays["value_ends"].tolist()
    if len(key_ends) != len(value_ends) or (key_ends and (key_ends[-1] != len(keys) or value_ends[-1] != len(values))):
        raise CorruptArtifact("feature records: keys and values do not fit each other")
    records = []
    key_at = value_at = 0
    for key_end, value_end in zip(key_ends, value_ends, strict=True):
        records.append((keys[key_at:key_end].decode(), values[value_at:value_end]))
        key_at, value_at = key_end, value_end
    return records
