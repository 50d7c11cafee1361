"""Profiles of users, and what a record of profiles.v1 says of one. Pure, so cores may use it; `wire.profile` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.events.attributes import Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of one user.

    Attributes:
        user_id: in canonical form.
        attributes: by name, sorted.
        updated_at_ms: Unix milliseconds of its last change; 0 when its owner does not say.
    """

    user_id: str
    attributes: Attributes = field(default_factory=dict)
    updated_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeletedProfile:
    """Nothing is known of the user any more."""

    user_id: str


ProfileChange = Profile | DeletedProfile
