"""Writer and readers in processes of their own; kill -9 of the writer at any point. No reader ever sees a wrong row."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.common.ranker.tables.writer import ModelWriter
from tests.faults import mapped_table_process as table_process
from tests.limits import seconds

ROOT = Path(__file__).parents[2]
PROCESS = [sys.executable, "-m", "tests.faults.mapped_table_process"]


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}"}
    with subprocess.Popen([*PROCESS, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)


def first_line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def editions(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("edition-")) for path in directory.glob("edition-*"))


def test_readers_beside_a_busy_writer_see_whole_rows_of_at_most_two_neighbouring_deltas(tmp_path):
    with started("write", tmp_path) as writer:
        assert first_line(writer)[0] == "rebuilt"
        with started("read", tmp_path, 3_000, 200) as one, started("read", tmp_path, 3_000, 200) as other:
            assert [reader.wait(seconds(120)) for reader in (one, other)] == [0, 0]
        deadline = time.monotonic() + seconds(60)
        while editions(tmp_path)[-1] == 1:
            assert time.monotonic() < deadline, "the tables do not grow"
            time.sleep(0.05)
    # The editions before are gone: but for one, when the kill came between making the next and removing the last.
    numbers = editions(tmp_path)
    assert numbers in ([numbers[-1]], [numbers[-1] - 1, numbers[-1]])


@pytest.mark.parametrize("seed", range(2))
def test_a_writer_killed_again_and_again_never_shows_a_wrong_row(tmp_path, seed):
    delays = random.Random(seed)
    outcomes = []
    reader: ModelReader | None = None
    for _ in range(5):
        with started("write", tmp_path) as writer:
            outcomes.append(first_line(writer)[0])
            reader = reader or ModelReader(tmp_path, table_process.SCHEMA)
            end = time.monotonic() + delays.uniform(0.01, 0.2)
            num_whole = 0
            while time.monotonic() < end or not num_whole:
                assert time.monotonic() < end + seconds(60), "the reader sees no whole row although the writer lives"
                with contextlib.suppress(TableNotReady):  # the writer stood still in the middle of a row; a torn row is an AssertionError
                    table_process.check_once(reader)
                    num_whole += 1
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
        # Without a writer a row or the control block may be half-written; then the reader says so.
        for _ in range(20):
            try:
                table_process.check_once(reader)
            except TableNotReady:
                break
    # Later ones go on from a whole edition or build another: what readers see tells that either was right.
    assert outcomes[0] == "rebuilt"
    assert set(outcomes) <= {"rebuilt", "resumed"}


@pytest.mark.parametrize("death", ["die-between-tables", "die-in-row", "die-in-control"])
def test_a_delta_half_applied_is_noticed_by_the_next_writer_and_built_again(tmp_path, death):
    with started("write", tmp_path, death) as writer:
        assert first_line(writer) == ["rebuilt", "0"]
        writer.wait(seconds(60))
        assert writer.returncode == -signal.SIGKILL
    reader = ModelReader(tmp_path, table_process.SCHEMA) if death != "die-in-control" else None
    if reader is not None:
        untouched = {"user": np.array([3, 4, 5])}
        rows = reader.read(untouched).rows["user"]
        assert np.all(rows == rows[:, :1])
        assert np.all(np.isin(rows[:, 0], [-1, table_process.DEADLY - 1, table_process.DEADLY]))
    if death == "die-in-row":
        assert reader is not None
        with pytest.raises(TableNotReady, match="row of id 3 is being written"):
            reader.read({"item": np.array([4, table_process.IN_BOTH])})
    if death == "die-in-control":
        with pytest.raises(TableNotReady, match="its writer died"):
            ModelReader(tmp_path, table_process.SCHEMA)
    successor = ModelWriter(tmp_path, table_process.SCHEMA)
    assert successor.applied is None
    table_process.build(successor, 7)
    assert table_process.check_once(reader or ModelReader(tmp_path, table_process.SCHEMA)) == 7


def test_a_writer_killed_between_deltas_leaves_tables_to_go_on_from(tmp_path):
    writer = ModelWriter(tmp_path, table_process.SCHEMA)
    table_process.build(writer, 3)
    writer.close()
    with started("write", tmp_path) as process:
        assert first_line(process) == ["resumed", "3"]


def test_two_writers_cannot_run_at_once(tmp_path):
    with started("write", tmp_path) as writer:
        first_line(writer)
        with started("write", tmp_path) as second:
            assert first_line(second) == []
            assert second.wait(seconds(30)) != 0
