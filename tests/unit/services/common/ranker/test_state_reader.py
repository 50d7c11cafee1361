"""A state that cannot be read counts as absent, and is told once a key, of a bounded number of keys."""

from __future__ import annotations

import logging

from services.common.ranker.state_reader import StateReader
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from tests.fuzz.ranker_states import SPEC


def test_an_unreadable_state_of_every_kind_is_absent_and_told_once(caplog) -> None:
    reader = StateReader(SPEC)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert reader.user("tm:u:1", b"?") is None
            assert reader.whole("tm:g:0", b"?") is None
            assert reader.item("tm:i:1:0", b"?") is None
            assert reader.item_bytes(["tm:i:1:0", "tm:i:2:0"], [b"?", None]) == [None, None]
            assert reader.neighbours("tm:i2i:1:0", b"?") is None
            assert reader.counts("tm:i2i:2:0", b"?") == reader.popular("tm:pop:0", b"?", 1.0) == []
            assert reader.decayed("tm:popc:0 1", b"?") is None
    assert len(caplog.records) == 7
    assert "tm:u:1 in Redis cannot be read and counts as absent until it is written again: user state: 1 bytes" in caplog.text
    assert reader.num_unreadable == 24


def test_what_can_be_read_is_read(caplog) -> None:
    reader, act = StateReader(SPEC), Interaction("u", "i", "rating", 4.0, 0)
    user, whole, item = UserState(), GlobalState(), ItemState()
    for state in (user, whole):
        state.apply(SPEC, act, ("c",), 5)
    item.apply(SPEC, act, 1.0, 5)
    assert reader.user("u", user.to_bytes()) == user
    assert reader.whole("g", whole.to_bytes()) == whole
    assert reader.item("i", item.to_bytes(SPEC)) == item
    damaged = item.to_bytes(SPEC)[:-8] + b"\xff" * 8  # a NaN
    assert reader.item_bytes(["i", "j", "k"], [item.to_bytes(SPEC), damaged, None]) == [item.to_bytes(SPEC), None, None]
    assert len(caplog.records) == 1


def test_ten_times_more_unreadable_keys_than_are_named_fill_no_log(caplog) -> None:
    reader = StateReader(SPEC)
    for number in range(10_000):
        assert reader.item(f"tm:i:{number}:0", b"?") is None
    assert len(caplog.records) == 1_001
    assert "more than 1000 states in Redis cannot be read; further ones are not named" in caplog.records[-1].message
    assert reader.num_unreadable == 10_000
