"""Reads the online states as they lie in Redis. What cannot be read counts as absent: its next write makes it anew.

A damaged state is no fault of the feedback or of the request that needs it, and must hold up neither. It is told once a key, so that a
Redis that holds something else does not fill the log. What was made under other half-lives is translated
(services.common.ranker.half_lives).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.common.events.attributes import NO_ATTRIBUTES, Attributes
from services.common.events.content import MalformedRecord
from services.common.events.wire.profile import profile_of
from services.common.platform.errors import CorruptArtifact
from services.common.ranker.feature_records import profile_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import MAX_NEIGHBOURS, Counted, Neighbours, unpack_counts, unpack_decayed, unpack_popular
from services.common.ranker.states import (
    GlobalState,
    ItemState,
    UserState,
    are_counts,
    item_state_bytes,
    item_state_head,
    present_item_bytes,
)

_MAX_TOLD = 1_000

StateT = TypeVar("StateT")

_log = logging.getLogger(__name__)


class StateReader:
    """Every method takes the Redis key, for the log, and the value that Redis has there, None if there is none.

    Attributes:
        num_unreadable: values that counted as absent, so far.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        """`spec` is the present one."""
        self.num_unreadable = 0
        self._spec = spec
        self._told: set[str] = set()

    def user(self, key: str, value: bytes | None) -> UserState | None:
        """Return a user's state."""
        return self._read(key, value, lambda data: UserState.from_bytes(self._spec, data))

    def profile(self, key: str, value: bytes | None) -> Attributes:
        """Return the attributes in a user's profile; none without one."""
        return self._read(key, value, lambda data: _attributes_of(key, data)) or NO_ATTRIBUTES

    def whole(self, key: str, value: bytes | None) -> GlobalState | None:
        """Return the state of a whole partition."""
        return self._read(key, value, GlobalState.from_bytes)

    def item(self, key: str, value: bytes | None) -> ItemState | None:
        """Return an item's state."""
        return self._read(key, value, lambda data: ItemState.from_bytes(self._spec, data))

    def item_bytes(self, keys: Sequence[str], values: Sequence[bytes | None]) -> list[bytes | None]:
        """Return item states as `merge_item_bytes` takes them without more ado: packed, under the present half-lives, sound."""
        size, head = item_state_bytes(self._spec), item_state_head(self._spec)
        present = [
            value
            if value is None or (len(value) == size and value.startswith(head))
            else self._read(key, value, lambda data: present_item_bytes(self._spec, data))
            for key, value in zip(keys, values, strict=True)
        ]
        there = [data for data in present if data is not None]
        if there and not are_counts(self._spec, there):
            present = [data if self.item(key, data) is not None else None for key, data in zip(keys, present, strict=True)]
        return present

    def popular(self, key: str, value: bytes | None, clock: float) -> list[Counted]:
        """Return the popular items of a partial whose clock is `clock`."""
        half_life = self._spec.counters.half_lives_events[0]
        return self._read(key, value, lambda data: unpack_popular(data, half_life, clock)) or []

    def decayed(self, key: str, value: bytes) -> tuple[float, float] | None:
        """Return one of `Popularity.counts`; `key` names the hash and the field."""
        return self._read(key, value, lambda data: unpack_decayed(data, self._spec.counters.half_lives_events[0]))

    def neighbours(self, key: str, value: bytes | None) -> Neighbours | None:
        """Return the neighbours of an item, as one partial counts them."""
        return self._read(key, value, lambda data: Neighbours.from_bytes(data, MAX_NEIGHBOURS))

    def counts(self, key: str, value: bytes | None) -> list[Counted]:
        """Return counted items in their packed order."""
        return self._read(key, value, unpack_counts) or []

    def _read(self, key: str, value: bytes | None, unpack: Callable[[bytes], StateT]) -> StateT | None:
        if value is None:
            return None
        try:
            return unpack(value)
        except CorruptArtifact as error:
            self.num_unreadable += 1
            self._tell(key, error)
            return None

    def _tell(self, key: str, error: CorruptArtifact) -> None:
        if key in self._told or len(self._told) > _MAX_TOLD:
            return
        self._told.add(key)
        if len(self._told) > _MAX_TOLD:
            _log.error(
                "more than %d states in Redis cannot be read; further ones are not named. Does REDIS_URL lead to this mesh's?", _MAX_TOLD
            )
        else:
            _log.error("%s in Redis cannot be read and counts as absent until it is written again: %s", key, error)


def _attributes_of(key: str, data: bytes) -> Attributes:
    try:
        profile = profile_of(data)
    except MalformedRecord as error:
        raise CorruptArtifact(f"profile: {error}") from error
    if profile_key(profile.user_id) != key:
        raise CorruptArtifact(f"profile: it is of the user {profile.user_id[:80]!r}")
    return profile.attributes
