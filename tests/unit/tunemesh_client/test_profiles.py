"""Profiles as records of profiles.v1: the mesh reads what the client writes."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.events import profile as nouns
from services.common.events.envelope import header, headers_for
from services.common.events.topics import PROFILES
from services.common.events.wire.profile import read_change
from tunemesh_client import InvalidRequest, Profile
from tunemesh_client.profiles import PROFILE_TYPE, PROFILES_TOPIC, DeletedProfile, record_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW_MS = 1_764_000_000_007


def written(given: Profile | DeletedProfile, traceparent: str = "") -> Any:
    return record_of(given, source="/shop", written_at_ms=NOW_MS, traceparent=traceparent)


@pytest.mark.parametrize("traceparent", ["", TRACEPARENT])
def test_a_record_is_what_the_mesh_reads(traceparent: str) -> None:
    record = written(Profile(7.0, {"city": "Oslo", "age": 31, "tastes": ["jazz"], "nothing": None}, updated_at_ms=NOW_MS), traceparent)
    assert (PROFILES.name, PROFILES.value) == (PROFILES_TOPIC, PROFILE_TYPE)
    assert record.headers == headers_for(PROFILES.value, "/shop", event_id=record.event_id, time_ms=NOW_MS, traceparent=traceparent)
    assert record.key == b"7"
    assert read_change(record.key, record.value, record.headers) == nouns.Profile(
        user_id="7", attributes={"age": 31, "city": "Oslo", "tastes": ("jazz",)}, updated_at_ms=NOW_MS
    )


def test_a_deleted_profile_is_a_record_without_value() -> None:
    record = written(DeletedProfile(" ada "))
    assert (record.key, record.value) == (b"ada", None)
    assert read_change(record.key, record.value, record.headers) == nouns.DeletedProfile("ada")


def test_each_record_has_an_id_of_its_own() -> None:
    assert len({header(written(Profile("ada")).headers, "ce_id") for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Profile("", {}), "user_id: it has 0 bytes; it must have 1 to 128"),
        (Profile("x" * 129, {}), "user_id: it has 129 bytes"),
        (Profile(1.5, {}), "user_id: 1.5 is no id"),
        (DeletedProfile(""), "user_id: it has 0 bytes"),
        (Profile("ada", {"a": float("nan")}), r"attributes\.a: nan is not finite"),
        (Profile("ada", {}, updated_at_ms=1_764_000_000), "updated_at_ms: 1764000000 is no time in Unix milliseconds"),
        (Profile("ada", {}, updated_at_ms=-1), "updated_at_ms: -1 is no time"),
    ],
)
def test_what_the_mesh_would_set_aside_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        written(given)
