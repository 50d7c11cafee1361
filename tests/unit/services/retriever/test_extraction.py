from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.retriever.core.documents import ChunkLimits, PassageText, texts_of
from services.retriever.extract import extract
from services.retriever.extraction import ExtractionLimits
from services.retriever.extraction_process import ExtractionProcess, ExtractionUnavailable
from services.retriever.files import DocumentFolder, FileLimits
from services.retriever.left_out import LeftOut
from services.retriever.outline import Unreadable
from services.retriever.settings import RetrieverSettings
from tests.limits import seconds
from tests.standstill import suspend

ODD = (sys.executable, "-m", "tests.odd_reader")
ORDINARY = b"# Fees\n\nTwo euros.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
CHUNKS = ChunkLimits(max_tokens=99, overlap_tokens=9)


def passages(path: str, raw: bytes) -> tuple[PassageText, ...]:
    """What the process is to say."""
    return tuple(texts_of(path, *extract(path, raw), CHUNKS))


def limits(*, cpu_ms: int = 600_000, memory_mib: int = 512) -> ExtractionLimits:
    return ExtractionLimits(
        cpu_ms=cpu_ms,
        cpu_setting="CPU_SETTING",
        memory_bytes=memory_mib * 2**20,
        memory_setting="MEMORY_SETTING",
        unpacked_bytes=2**23,
        unpacked_setting="UNPACKED_SETTING",
    )


@pytest.fixture
def odd() -> Iterator[ExtractionProcess]:
    """A reader that does what the names of files say."""
    process = ExtractionProcess(limits(cpu_ms=300), CHUNKS, ODD)
    yield process
    process.close()


@pytest.fixture
def reader() -> Iterator[ExtractionProcess]:
    """The reader as it is, without a limit that a test could reach."""
    process = ExtractionProcess(limits(), CHUNKS)
    yield process
    process.close()


def pid_of(process: ExtractionProcess) -> int:
    assert process.pid is not None
    return process.pid


def test_the_process_says_what_the_function_says_and_reads_one_file_after_the_other(reader):
    assert reader.pid is None, "nothing runs before the first file"
    for path, raw in (
        ("a.md", ORDINARY),
        ("b.html", b"<h1>H</h1><p>\xc3\xb6 \xf0\x9f\x98\x80</p>"),
        ("c_d.txt", b""),
        ("e.txt", b"a\n\nb"),
    ):
        assert reader.read(path, raw).passages == passages(path, raw)
    pid = reader.pid
    with pytest.raises(Unreadable, match="NUL"):
        reader.read("x.txt", b"\x00")
    assert reader.read("a.md", ORDINARY).passages == passages("a.md", ORDINARY)
    assert reader.pid == pid


@pytest.mark.parametrize("path", ["loops.txt", "loops_in_c.txt"])
def test_a_file_that_takes_too_much_processor_time_is_refused_by_limit_and_setting_and_the_next_is_read(odd, path):
    with pytest.raises(Unreadable, match=r"more than 0\.3 s of processor time; split it, or raise CPU_SETTING"):
        odd.read(path, b"")
    assert odd.read("a.md", ORDINARY).passages == passages("a.md", ORDINARY)


@pytest.mark.parametrize("path", ["takes_memory.txt", "grows.txt"])
def test_a_file_that_takes_too_much_memory_is_refused_by_limit_and_setting_and_the_next_is_read(path):
    process = ExtractionProcess(limits(memory_mib=128), CHUNKS, ODD)
    try:
        with pytest.raises(Unreadable, match="more than 128 MiB of memory; split it, or raise MEMORY_SETTING"):
            process.read(path, b"")
        assert process.read("a.md", ORDINARY).passages == passages("a.md", ORDINARY)
    finally:
        process.close()


@pytest.mark.parametrize(("path", "piece"), [("a.html", b"<p>x"), ("a.md", b"x\n\n"), ("a.md", b"<p>x\n\ny\n\n"), ("a.csv", b"x\n")])
def test_a_document_whose_tree_needs_too_much_memory_is_refused_so_whichever_parser_lacks_it(path, piece):
    process = ExtractionProcess(limits(memory_mib=128), CHUNKS)
    try:
        with pytest.raises(Unreadable, match="more than 128 MiB of memory; split it, or raise MEMORY_SETTING"):
            process.read(path, piece * (8 * 2**20 // len(piece)))
        assert process.read("a.md", ORDINARY).passages == passages("a.md", ORDINARY)
    finally:
        process.close()


def test_a_file_that_ends_its_reader_is_refused_with_how_and_the_next_is_read(odd):
    with pytest.raises(Unreadable, match="dies of it: by SIGSEGV, then by SIGSEGV"):
        odd.read("crashes.txt", b"")
    with pytest.raises(Unreadable, match="its reader failed: LookupError: no such part"):
        odd.read("fails.txt", b"")
    assert odd.read("a.md", ORDINARY).passages == passages("a.md", ORDINARY)


def test_what_a_library_prints_is_no_answer(odd):
    assert odd.read("prints.txt", b"Hello.").passages == passages("prints.txt", b"Hello.")


def test_a_document_whose_reader_is_killed_from_outside_is_read_by_the_next_one(reader):
    reader.read("a.md", ORDINARY)
    pid = pid_of(reader)
    suspend(pid)
    found = []
    thread = threading.Thread(target=lambda: found.append(reader.read("b.txt", b"Hello.").passages))
    thread.start()
    os.kill(pid, signal.SIGKILL)
    thread.join(seconds(60))
    assert found == [passages("b.txt", b"Hello.")] and reader.pid != pid


def test_a_reader_that_died_between_two_files_refuses_none(reader):
    reader.read("a.md", ORDINARY)
    os.kill(pid_of(reader), signal.SIGKILL)
    assert reader.read("b.txt", b"Hello.").passages == passages("b.txt", b"Hello.")


async def test_the_event_loop_goes_on_while_a_file_is_read_and_closing_ends_the_wait(reader):
    await asyncio.to_thread(reader.read, "a.md", ORDINARY)
    suspend(pid_of(reader))
    reading = asyncio.create_task(asyncio.to_thread(reader.read, "b.txt", b"Hello."))
    for _ in range(200):  # as long as a file may take: searches are answered
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    assert not reading.done()
    await asyncio.to_thread(reader.close)
    with pytest.raises(ExtractionUnavailable):
        await reading
    with pytest.raises(ExtractionUnavailable, match="closed"):
        reader.read("a.md", ORDINARY)


def test_a_reader_that_cannot_start_says_nothing_about_the_file():
    for command in (("/nowhere/python",), (sys.executable, "-c", "raise SystemExit(3)")):
        process = ExtractionProcess(limits(), CHUNKS, command)
        with pytest.raises(ExtractionUnavailable, match="cannot be started"):
            process.read("a.md", ORDINARY)
        process.close()


def test_the_reader_has_none_of_the_environment_and_a_low_priority(reader, monkeypatch):
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    reader.read("a.md", ORDINARY)
    variables = Path(f"/proc/{pid_of(reader)}/environ").read_bytes().split(b"\0")
    assert {line.partition(b"=")[0] for line in variables if line} <= {b"PYTHONPATH", b"LC_CTYPE"}
    assert os.getpriority(os.PRIO_PROCESS, pid_of(reader)) > os.getpriority(os.PRIO_PROCESS, 0)


def test_a_refused_file_stays_refused_until_it_changes_and_costs_its_time_once(tmp_path, odd):
    asked = []

    def read(path, raw):
        asked.append(path)
        return odd.read(path, raw)

    (tmp_path / "loops.txt").write_text("Hello.")
    (tmp_path / "other.txt").write_text("Hello.")
    folder = DocumentFolder(
        tmp_path, FileLimits(max_files=9, max_bytes=99), CHUNKS, max_batch=9, read=read, left_out=LeftOut(tmp_path / ".left_out")
    )
    assert [document.document_id for document in folder.look({}).documents] == ["other.txt"]
    for _ in range(3):
        folder.look({})
        assert "CPU_SETTING" in folder.refused["loops.txt"]
    assert sorted(asked) == ["loops.txt", "other.txt"]


def test_the_limits_have_bounds():
    for variable in ("extraction_cpu_ms", "extraction_memory_bytes"):
        for value in (0, 10**15):
            with pytest.raises(ValueError, match=variable):
                RetrieverSettings(**{variable: value})
    assert RetrieverSettings().extraction_cpu_ms == 4_000
