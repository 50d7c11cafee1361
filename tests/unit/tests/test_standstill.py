"""A process that is suspended does nothing more from then on, however busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.standstill import resume, suspend
from tests.waiting import eventually

# Eight threads that each count in a place of a file that both processes have mapped.
COUNTING = """
import mmap, struct, sys, threading, time
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 64)
def count(place):
    number = 0
    while True:
        number += 1
        struct.pack_into("<q", shared, 8 * place, number)
        time.sleep(0.0002)
for place in range(8):
    threading.Thread(target=count, args=(place,)).start()
"""


@pytest.fixture
def hogs() -> Iterator[None]:
    """More processes that want a core than there are cores."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for process in started:
        process.kill()
        process.wait()


def test_no_thread_runs_once_it_is_suspended_and_all_do_once_it_is_resumed(tmp_path, hogs):
    counters = tmp_path / "counters"
    counters.write_bytes(bytes(64))
    with subprocess.Popen([sys.executable, "-c", COUNTING, str(counters)]) as process:
        try:
            eventually(lambda: b"\0" * 8 not in [counters.read_bytes()[at : at + 8] for at in range(0, 64, 8)], every_s=0.01)
            for _ in range(30):
                suspend(process.pid)
                before = counters.read_bytes()
                assert not any(counters.read_bytes() != before for _ in range(200))
                resume(process.pid)
                eventually(lambda before=before: counters.read_bytes() != before, every_s=0.001)
        finally:
            process.kill()


def test_a_process_that_has_ended_is_said():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        suspend(process.pid)
