"""profiles.v1: from its records to `Profile` and `DeletedProfile`, and back to the message. It is compacted by user id.

The forms that a record may have: `compacted`.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from tunemesh.events.v1 import profile_pb2

from services.common.events.attributes import Attributes
from services.common.events.content import Headers, MalformedRecord
from services.common.events.profile import DeletedProfile, Profile, ProfileChange
from services.common.events.wire.attributes import attributes_of_values, write_attributes
from services.common.events.wire.compacted import CompactedReader


def _attributes_in(message: profile_pb2.Profile) -> Attributes:
    return attributes_of_values("attributes", message.attributes, MalformedRecord)


_READER = CompactedReader(profile_pb2.Profile, id_name="user_id", attribute_names=("attributes",), attributes_in=_attributes_in)


def read_change(key: bytes | None, value: bytes | None, headers: Headers | None) -> ProfileChange:
    """Return the profile in a record, or whose it deletes. Where the value does not name the id, the key does.

    Raises:
        MalformedRecord: it is no profile; or its id cannot be one; or its attributes break `services.common.events.attributes`.
    """
    entry = _READER.read(key, value, headers)
    if entry.message is None:
        return DeletedProfile(entry.id)
    return Profile(user_id=entry.id, attributes=entry.attributes, updated_at_ms=entry.message.updated_at_ms)


def profile_bytes(profile: Profile) -> bytes:
    """Return a profile as its message in Protobuf."""
    message = profile_pb2.Profile(user_id=profile.user_id, updated_at_ms=profile.updated_at_ms)
    write_attributes(profile.attributes, message.attributes)
    return message.SerializeToString(deterministic=True)


def profile_of(data: bytes) -> Profile:
    """Invert `profile_bytes`.

    Raises:
        MalformedRecord: the bytes are no profile, or one whose attributes break their limits.
    """
    try:
        message = profile_pb2.Profile.FromString(data)
    except DecodeError as error:
        raise MalformedRecord(f"not a {profile_pb2.Profile.DESCRIPTOR.full_name} in Protobuf: {error}") from error
    return Profile(user_id=message.user_id, attributes=_attributes_in(message), updated_at_ms=message.updated_at_ms)
