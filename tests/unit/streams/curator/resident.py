"""What a process of the curator's core keeps resident, after answers of once the bound, and of ten times it.

    python -m tests.unit.streams.curator.resident store|memory FOLDER    prints both numbers, in bytes

`store` keeps answers as the curator does. `memory` keeps all of them in a dictionary, as any leak would, SQLite's too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from streams.curator.answer_store import AnswerStore
from streams.curator.core import CurateConfig
from tests.unit.streams.curator.test_answer_store import T0, answer
from tests.unit.streams.curator.test_core import Bench, Kept

BOUND_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 8_000
DAY_MS = 24 * 3_600_000


def resident_bytes() -> int:
    """Of this process, as Linux counts them."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def main(kind: str, folder: Path) -> None:
    """Feed answers, a tick after each 50, and print two numbers."""
    answers = AnswerStore(folder / "answers.db", max_bytes=BOUND_BYTES) if kind == "store" else Kept(10**9)
    bench = Bench(CurateConfig(window_ms=7 * DAY_MS, wait_ms=2_000), answers=answers)  # type: ignore[arg-type]
    once = BOUND_BYTES // ANSWER_BYTES
    for number in range(10 * once):
        generation, record = answer(number, size=ANSWER_BYTES - 200)
        bench.core.on_generation(generation, record)
        bench.generations = number + 1
        if number % 50 == 49:
            bench.core.on_tick(T0 + number, (number + 1, 0))
        if number + 1 in (once, 10 * once):
            print(resident_bytes())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
