"""Profiles of users as records of profiles.v1. Each is the whole profile; the newest of a user stands. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunemesh.events.v1 import profile_pb2

from tunemesh_client.attributes import Attributes, write_attributes
from tunemesh_client.errors import InvalidRequest
from tunemesh_client.events import MAX_ID_BYTES, Record, headers_of
from tunemesh_client.ids import Id, canonical_id, new_id

PROFILES_TOPIC = "profiles.v1"
PROFILE_TYPE = "tunemesh.events.v1.Profile"

# From the year 1973 on a time in seconds, µs or ns is none in milliseconds.
_FIRST_MS, _LAST_MS = 10**11, 10**14


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of one user; it replaces what was known before."""

    user_id: Id
    """A text or a whole number: 1, 1.0 and "1" are one user."""
    attributes: Attributes = field(default_factory=dict)
    """By name: texts, numbers, true or false, lists of texts or of numbers. None is left out."""
    updated_at_ms: int = 0
    """Unix milliseconds of its last change; 0: not said."""

    def to_proto(self) -> profile_pb2.Profile:
        """Return the contract's message. Raises InvalidRequest, naming the field or attribute, when one breaks the contract."""
        if self.updated_at_ms and not _FIRST_MS <= self.updated_at_ms < _LAST_MS:
            raise _invalid(f"updated_at_ms: {self.updated_at_ms} is no time in Unix milliseconds; 0: not said")
        message = profile_pb2.Profile(user_id=_user_id(self.user_id), updated_at_ms=self.updated_at_ms)
        write_attributes("attributes", self.attributes, message.attributes)
        return message


@dataclass(frozen=True, slots=True)
class DeletedProfile:
    """Nothing is known of the user any more."""

    user_id: Id


def record_of(given: Profile | DeletedProfile, *, source: str, written_at_ms: int, traceparent: str) -> Record:
    """Return the record of a profile, or the one that deletes it.

    Args:
        given: what to write.
        source: `ce_source`: who writes, e.g. "/shop/web".
        written_at_ms: Unix milliseconds, now.
        traceparent: W3C trace context; no header when empty.
    Raises:
        InvalidRequest: `details` names the field.
    """
    event_id = new_id()
    headers = headers_of(PROFILE_TYPE, event_id, source=source, time_ms=written_at_ms, traceparent=traceparent)
    value = given.to_proto().SerializeToString() if isinstance(given, Profile) else None
    return Record(event_id, written_at_ms, _user_id(given.user_id).encode(), value, headers)


def _user_id(given: Id) -> str:
    user_id = canonical_id(given, "user_id")
    size = len(user_id.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise _invalid(f"user_id: it has {size} bytes; it must have 1 to {MAX_ID_BYTES}")
    return user_id


def _invalid(details: str) -> InvalidRequest:
    return InvalidRequest(details, "INVALID_ARGUMENT", "profile")
