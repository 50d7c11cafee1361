"""The follower of profiles.v1 over a store in memory: what is written, set aside, and from where it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.events.dead_letter_reasons import KILLED_WORKER, MALFORMED
from services.common.events.profile import Profile
from services.common.events.wire.profile import profile_bytes, profile_of
from services.common.platform.errors import Unavailable
from streams.features import profiles
from streams.features.profile_store import Position
from streams.features.profiles import ProfileFollower
from streams.strikes import Strikes
from tests.unit.services.common.events.test_attributes import UNHURRIED


class FakeStore:
    """Meets `Store`, as ProfileStore does on Redis: tests/integration/streams/test_profiles.py holds it to the same."""

    def __init__(self) -> None:
        self.at: Position | None = None
        self.values: dict[str, bytes] = {}

    async def position(self, _partition: int) -> Position | None:
        return self.at

    async def save(self, _partition: int, values: Mapping[str, bytes | None], before: Position | None, after: Position) -> bool:
        if self.at != before:
            return False
        for user_id, value in values.items():
            if value is None:
                self.values.pop(user_id, None)
            else:
                self.values[user_id] = value
        self.at = after
        return True

    @property
    def known(self) -> dict[str, dict[str, Any]]:
        return {user_id: dict(profile_of(value).attributes) for user_id, value in self.values.items()}


class Bench:
    """One follower, with what it set aside."""

    def __init__(self, strikes: Strikes | None = None) -> None:
        self.store, self.aside = FakeStore(), list[tuple[int, str, str]]()
        self.follower = ProfileFollower(0, self.store, strikes or Strikes(None), self._set_aside)

    async def _set_aside(self, record: Any, reason: str, detail: str) -> None:
        self.aside.append((record.offset, reason, detail))

    async def take(self, records: Sequence[Any]) -> bool:
        return await self.follower.take(records, self.store.at, Position(1, records[-1].offset + 1))


def record(offset: int, user_id: str, age: int | None) -> Any:
    value = None if age is None else profile_bytes(Profile(user_id=user_id, attributes={"age": age}))
    return SimpleNamespace(topic="profiles.v1", partition=0, offset=offset, key=user_id.encode(), value=value, headers=())


def bad(offset: int) -> Any:
    return SimpleNamespace(topic="profiles.v1", partition=0, offset=offset, key=b"eve", value=b"\xff", headers=())


async def test_the_newest_profile_stands_and_a_tombstone_deletes() -> None:
    bench = Bench()
    assert await bench.take([record(0, "ada", 30), record(1, "bob", 40), record(4, "ada", 31), record(5, "bob", None), record(6, "new", 1)])
    assert bench.store.known == {"ada": {"age": 31}, "new": {"age": 1}}
    assert bench.store.at == Position(1, 7)
    assert bench.follower.num_applied == 5
    assert await bench.take([record(9, "ada", None), record(10, "unknown", None)])
    assert bench.store.known == {"new": {"age": 1}}


async def test_what_is_no_profile_is_set_aside_and_the_user_keeps_the_last_one() -> None:
    bench = Bench()
    assert await bench.take([record(0, "eve", 30), bad(1), record(2, "ada", 31)])
    assert bench.store.known == {"eve": {"age": 30}, "ada": {"age": 31}}
    assert [(offset, reason) for offset, reason, _ in bench.aside] == [(1, MALFORMED)]
    assert "not a tunemesh.events.v1.Profile" in bench.aside[0][2]


async def test_nothing_is_written_where_redis_is_elsewhere() -> None:
    bench = Bench()
    bench.store.at = Position(1, 50)
    assert not await bench.follower.take([record(0, "ada", 30)], Position(1, 0), Position(1, 1))
    assert bench.store.known == {} and bench.store.at == Position(1, 50) and bench.follower.num_applied == 0


async def test_a_record_that_kills_its_worker_twice_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(key: bytes, *_: Any) -> Any:
        if key == b"poison":
            raise MemoryError("too deep")
        return original(key, *_)

    original = profiles.read_change
    monkeypatch.setattr(profiles, "read_change", read)
    records = [record(0, "ada", 30), record(1, "poison", 1), record(2, "bob", 40)]
    for _ in range(2):
        strikes = Strikes(tmp_path / "strikes")
        bench = Bench(strikes)
        with pytest.raises(MemoryError):
            await bench.take(records)
        assert bench.store.known == {} and not bench.aside  # not half of the batch
        strikes.close()
    strikes = Strikes(tmp_path / "strikes")
    bench = Bench(strikes)
    assert await bench.take(records)
    assert bench.store.known == {"ada": {"age": 30}, "bob": {"age": 40}}
    assert [(offset, reason) for offset, reason, _ in bench.aside] == [(1, KILLED_WORKER)]
    strikes.close()


@UNHURRIED
@given(
    st.lists(st.tuples(st.sampled_from(["ada", "bob", "eve"]), st.one_of(st.none(), st.integers(0, 5), st.just("bad"))), max_size=12),
    st.lists(st.integers(0, 12), max_size=6),
)
async def test_however_the_log_is_cut_and_repeated_redis_holds_its_newest_profiles(acts: list[tuple[str, Any]], cuts: list[int]) -> None:
    """Workers that die, and workers that think that they still own the partition: each goes on from where Redis is."""
    records = [bad(offset) if age == "bad" else record(offset, user_id, age) for offset, (user_id, age) in enumerate(acts)]
    expected = {user_id: {"age": age} for user_id, age in acts if age != "bad"}
    expected = {user_id: known for user_id, known in expected.items() if known["age"] is not None}
    bench = Bench()
    for cut in [*cuts, len(records)]:
        begin = 0 if bench.store.at is None else bench.store.at.offset
        stale = await bench.follower.take(records[:1], Position(9, 9), Position(1, 1)) if records else False
        assert not stale
        if records[begin:cut]:
            assert await bench.take(records[begin:cut])
    assert bench.store.known == expected


class FakeReader:
    """What the follower asks about the log."""

    def __init__(self, log: int, beginning: int, end: int) -> None:
        self._log, self._beginning, self._end = log, beginning, end

    async def incarnation(self, _topic: str) -> int:
        return self._log

    async def beginning(self, _topic: str, _partition: int) -> int:
        return self._beginning

    async def last_end(self, _topic: str, _partition: int) -> int:
        return self._end


@pytest.mark.parametrize(
    ("known", "log", "expected"),
    [
        (None, (7, 0, 100), Position(7, 0)),
        (None, (7, 20, 100), Position(7, 20)),
        (Position(7, 60), (7, 0, 100), Position(7, 60)),
        (Position(7, 100), (7, 0, 100), Position(7, 100)),
        (Position(7, 10), (7, 20, 100), Position(7, 20)),
        # A broker that was made anew, though its log is as long already; and one that lost its end.
        (Position(7, 60), (8, 0, 100), Position(8, 0)),
        (Position(7, 101), (7, 0, 100), Position(7, 0)),
        # One that does not name its logs.
        (Position(7, 60), (0, 0, 100), Position(7, 60)),
        (Position(0, 60), (7, 0, 100), Position(7, 60)),
        (Position(0, 60), (0, 0, 59), Position(0, 0)),
    ],
)
async def test_a_worker_begins_where_redis_ends_and_anew_where_the_log_is_another(
    known: Position | None, log: tuple[int, int, int], expected: Position
) -> None:
    assert await Bench().follower._begin(FakeReader(*log), known) == expected  # type: ignore[arg-type]


async def test_a_failure_is_tried_again_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done(Exception):
        pass

    outcomes: list[Exception] = [Unavailable("Redis does not answer"), Unavailable("Redis does not answer"), OSError("no broker"), Done()]

    async def attempt(_: Any) -> None:
        raise outcomes.pop(0)

    monkeypatch.setattr(profiles, "_RETRY_S", 0.0)
    bench = Bench()
    monkeypatch.setattr(bench.follower, "_follow", attempt)
    with pytest.raises(Done):
        await bench.follower.follow(SimpleNamespace())  # type: ignore[arg-type]
    assert not outcomes


@pytest.mark.parametrize("raw", [None, b"", b"7", b"a b", b"1 2 3", b"\xff \xff"])
def test_a_position_that_cannot_be_read_is_none(raw: bytes | None) -> None:
    assert Position.from_bytes(raw) is None
    assert Position.from_bytes(Position(2**64 - 1, 5).to_bytes()) == Position(2**64 - 1, 5)
