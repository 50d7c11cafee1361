import random
import sqlite3
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import generation_pb2

from services.common.events.generation import Generation
from services.common.events.wire.generation import parse_generation
from services.common.platform.errors import ConfigurationError, Unavailable
from streams.curator.answer_store import AnswerStore
from streams.partitioned.records import Record
from tests.limits import seconds

T0 = 1_700_000_000_000
MIB = 1024 * 1024
HEADERS = (("ce_id", b"1"), ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("odd", b"\xff\x00"))


def answer(number: int, *, size: int = 100, at_ms: int = T0) -> tuple[Generation, Record]:
    message = generation_pb2.Generation(
        request_id=f"r{number}",
        user_id="u",
        task="helpdesk",
        question="How long?",
        messages=[chat_pb2.ChatMessage(role="user", content="x" * size)],
        answer=f"A week, {number}.",
        finished_at_ms=at_ms + number,
    )
    record = Record("generations.v1", 0, number, b"u", message.SerializeToString(), HEADERS)
    return parse_generation(record.value, record.headers), record


def store_at(folder: Path, max_bytes: int = 64 * MIB) -> AnswerStore:
    return AnswerStore(folder / "store" / "answers-0.sqlite", max_bytes=max_bytes)


def test_an_answer_is_there_before_it_is_flushed_and_as_it_was_read_after_a_new_start(tmp_path):
    store = store_at(tmp_path)
    generation, record = answer(7)
    store.put(generation, record)
    assert (store.get("r7"), store.offset_of("r7"), store.next_offset) == (generation, 7, 0)
    assert store.flush(8) == 0
    store.close()
    again = store_at(tmp_path)
    assert (again.get("r7"), again.offset_of("r7"), again.next_offset, again.newest()) == (generation, 7, 8, (7, "r7"))
    assert again.get("r8") is None and again.offset_of("r8") is None
    again.close()


def test_what_was_not_flushed_is_not_claimed(tmp_path):
    store = store_at(tmp_path)
    store.put(*answer(1))
    store.flush(2)
    store.put(*answer(2))
    store.close()
    again = store_at(tmp_path)
    assert (again.next_offset, again.get("r2")) == (2, None)
    again.close()


def test_an_answer_that_is_read_again_stands_there_once(tmp_path):
    store = store_at(tmp_path)
    for _ in range(2):
        store.put(*answer(1))
        store.flush(2)
    size = store.num_bytes
    store.close()
    again = store_at(tmp_path)
    assert again.num_bytes == size > 0
    again.close()


def test_memory_and_disk_stay_flat_at_ten_times_the_bound(tmp_path):
    """2,500 answers of 4 KB against a bound of 1 MiB, a flush (as of a tick) after each 50."""
    store = store_at(tmp_path, MIB)
    evicted = 0

    def feed(numbers: range) -> None:
        nonlocal evicted
        for number in numbers:
            store.put(*answer(number, size=4_000))
            if number % 50 == 49:
                evicted += store.flush(number + 1)

    feed(range(250))
    tracemalloc.start()
    feed(range(250, 2_500))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < MIB // 4 and peak < MIB
    assert store.num_bytes <= MIB
    oldest = evicted
    assert 180 < 2_500 - oldest < 250
    assert [store.get(f"r{number}") is not None for number in (oldest - 1, oldest, 2_499)] == [False, True, True]
    store.close()
    files = list((tmp_path / "store").iterdir())
    assert sum(path.stat().st_size for path in files) < 4 * MIB


def test_answers_expire_by_their_end(tmp_path):
    store = store_at(tmp_path)
    for number in range(10):
        store.put(*answer(number))
    store.flush(10)
    assert store.expire(T0) == 0
    assert store.expire(T0 + 4) == 4
    assert store.get("r3") is None and store.get("r4") is not None
    assert store.expire(T0 + 100) == 6 and store.num_bytes == 0 and store.next_offset == 10
    store.close()


def test_a_cleared_store_knows_nothing(tmp_path):
    store = store_at(tmp_path)
    store.put(*answer(1))
    store.flush(2)
    store.put(*answer(2))
    store.clear()
    assert (store.next_offset, store.newest(), store.get("r1"), store.get("r2"), store.num_bytes) == (0, None, None, None, 0)
    store.close()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + b"\xff" * 5_000])
def test_a_file_that_is_no_store_is_begun_anew(tmp_path, content):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "answers-0.sqlite").write_bytes(content)
    store = store_at(tmp_path)
    store.put(*answer(1))
    store.flush(2)
    assert store.get("r1") is not None
    store.close()


def test_a_store_of_another_format_is_begun_anew(tmp_path):
    store_at(tmp_path).close()
    with sqlite3.connect(tmp_path / "store" / "answers-0.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    store = store_at(tmp_path)
    assert store.next_offset == 0
    store.close()


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 3, 20])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damaged_answers(folder: Path, num_flips: int, seed: int) -> tuple[int, int, int]:
    """Flip bits in a store's file again and again; return how many answers were right, how many absent, how many stores said so."""
    draw, answers = random.Random(seed), [answer(number, size=draw_size) for number, draw_size in enumerate([50, 400, 3_000, 9_000] * 5)]
    path = folder / "store" / "answers-0.sqlite"
    store = store_at(folder)
    for generation, record in answers:
        store.put(generation, record)
    store.flush(len(answers))
    store.close()
    sound = path.read_bytes()
    right = absent = refused = 0
    for _ in range(num_flips):
        path.write_bytes(sound)
        flipped(path, draw)
        generation, _ = draw.choice(answers)
        try:
            store = store_at(folder)
        except Unavailable:
            refused += 1
            continue
        try:
            found = store.get(generation.request_id)
            assert found is None or found == generation, "a wrong answer"
            right, absent = right + (found is not None), absent + (found is None)
        except Unavailable:
            refused += 1
        store.close()
    return right, absent, refused


def test_a_damaged_store_never_gives_a_wrong_answer(tmp_path):
    right, absent, refused = damaged_answers(tmp_path, 60, seed=3)
    assert right + absent + refused == 60 and right and refused


def test_a_folder_that_cannot_be_made_is_told_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="TUNEMESH_CURATOR_STORE_DIR"):
        AnswerStore(tmp_path / "file" / "store" / "answers-0.sqlite", max_bytes=MIB)


def test_the_answer_of_an_equal_request_that_came_first_stays(tmp_path):
    store = store_at(tmp_path)
    generation, record = answer(1)
    store.put(generation, record)
    store.flush(2)
    later = replace(generation, answer="Two weeks.")
    assert store.offset_of(later.request_id) == 1
    assert store.get("r1") == generation
    store.close()


def test_resident_memory_stays_flat_at_ten_times_the_bound(tmp_path):
    """40 MiB of answers against a bound of 4, in processes of their own: SQLite's memory is none of Python's."""

    def grown(kind: str) -> int:
        command = [sys.executable, "-m", "tests.unit.streams.curator.resident", kind, str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4], timeout=seconds(120))
        once, ten_times = map(int, run.stdout.split())
        return ten_times - once

    all_kept, by_store = grown("memory"), grown("store")
    assert all_kept > 30 * MIB, "what keeps every answer is seen to grow"
    assert by_store < all_kept / 4
