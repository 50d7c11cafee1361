"""Strikes outlive the process that they were noted in, whichever way it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.partitioned.records import Record
from streams.strikes import Strikes, strikes_of


def record(offset: int, value: bytes | None = b"v", topic: str = "feedback.v1", partition: int = 1) -> Record:
    return Record(topic, partition, offset, b"key", value, ())


def fail_on(path: Path, *records: Record, error: Exception | None = None) -> None:
    """One life of a worker that ends in an error."""
    strikes = Strikes(path)
    with pytest.raises(type(error or ValueError("no"))), strikes.on_trial(records):
        raise error or ValueError("no")
    strikes.close()


def test_the_second_death_condemns_a_record_and_says_what_it_died_of(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "worker"
    fail_on(path, record(7))
    strikes = Strikes(path)
    assert strikes.is_suspect(record(7)) and not strikes.condemned(record(7))
    strikes.close()
    fail_on(path, record(7), error=KeyError("x"))
    strikes = Strikes(path)
    assert strikes.condemned(record(7)) == "the worker died on it 2 times: KeyError: 'x'"
    for other in (record(8), record(7, b"another broker's"), record(7, None), record(7, topic="exposures.v1"), record(7, partition=0)):
        assert not strikes.is_suspect(other) and not strikes.condemned(other)


def test_a_batch_is_suspected_whole_and_those_that_pass_alone_are_cleared(tmp_path: Path) -> None:
    path = tmp_path / "worker"
    fail_on(path, record(1), record(2), record(3))
    strikes = Strikes(path)
    assert all(strikes.is_suspect(record(offset)) for offset in (1, 2, 3))
    with strikes.on_trial([record(1)]):
        pass
    with strikes.on_trial([record(3)]), strikes.working_on(record(3)):
        pass
    with strikes.working_on(record(2)):
        pass  # a part of its work: no pardon
    strikes.close()
    fail_on(path, record(2))
    strikes = Strikes(path)
    assert [bool(strikes.condemned(record(offset))) for offset in (1, 2, 3)] == [False, True, False]
    assert not strikes.is_suspect(record(1))


def test_an_error_that_passes_two_guards_is_one_strike_against_the_record_of_the_inner_one(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path / "worker")
    with pytest.raises(ValueError, match="no"), strikes.on_trial([record(1), record(2)]), strikes.working_on(record(2)):
        raise ValueError("no")
    assert [strikes.is_suspect(record(offset)) for offset in (1, 2)] == [False, True]
    assert not strikes.condemned(record(2))


def test_an_error_that_is_not_the_records_fault_is_no_strike(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path / "worker")
    with pytest.raises(ConnectionError), strikes.on_trial([record(1)], unless=(ConnectionError,)):
        raise ConnectionError
    assert not strikes.is_suspect(record(1))


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(1)", "os.abort()"])
def test_a_process_that_ends_in_the_middle_of_a_record_is_a_strike_too(tmp_path: Path, end: str) -> None:
    code = f"""
import os, resource, sys
from pathlib import Path
from streams.partitioned.records import Record
from streams.strikes import Strikes
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
strikes = Strikes(Path(sys.argv[1]))
with strikes.working_on(Record("exposures.v1", 3, 41, None, b"fine", ())):
    pass
with strikes.working_on(Record("exposures.v1", 3, 42, None, b"huge", ())):
    {end}
"""
    path = tmp_path / "worker"
    for deaths in (1, 2):
        ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True)
        assert ended.returncode != 0
        strikes = Strikes(path)
        assert strikes.is_suspect(record(42, b"huge", "exposures.v1", 3))
        assert bool(strikes.condemned(record(42, b"huge", "exposures.v1", 3))) == (deaths == 2)
        assert not strikes.is_suspect(record(41, b"fine", "exposures.v1", 3))
        strikes.close()


def test_a_process_that_is_killed_between_records_is_no_strike(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from streams.partitioned.records import Record
from streams.strikes import Strikes
strikes = Strikes(Path(sys.argv[1]))
with strikes.working_on(Record("exposures.v1", 3, 41, None, b"fine", ())):
    pass
os.kill(os.getpid(), 9)
"""
    path = tmp_path / "worker"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not Strikes(path).is_suspect(record(41, b"fine", "exposures.v1", 3))


def test_ten_times_more_strikes_than_are_remembered_keep_the_newest(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path / "worker")
    for first in range(0, 10_000, 500):
        with pytest.raises(ValueError, match="no"), strikes.on_trial([record(offset) for offset in range(first, first + 500)]):
            raise ValueError("no")
    strikes.close()
    strikes = Strikes(tmp_path / "worker")
    assert [strikes.is_suspect(record(offset)) for offset in (8_999, 9_000, 9_999)] == [False, True, True]
    assert (tmp_path / "worker").stat().st_size < 200_000


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[{"topic": "t"}]', b"\xff", b'{"a": 1}'])
def test_damaged_files_are_forgotten_and_work_goes_on(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "worker"
    path.write_bytes(content)
    path.with_suffix(".mark").write_bytes(b"\x01" * len(content))
    fail_on(path, record(7))
    assert Strikes(path).is_suspect(record(7))


def test_without_a_file_of_its_own_a_process_remembers_strikes_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    first = Strikes(tmp_path / "worker")
    for strikes in (Strikes(None), Strikes(tmp_path / "file" / "worker"), Strikes(tmp_path / "worker")):
        for _ in range(2):
            with pytest.raises(ValueError, match="no"), strikes.working_on(record(7)):
                raise ValueError("no")
        assert strikes.condemned(record(7))
    assert caplog.text.count("strikes are not remembered over the end of this process") == 2
    assert not first.is_suspect(record(7))


def test_workers_of_different_names_or_brokers_have_files_of_their_own(tmp_path: Path) -> None:
    paths = {
        strikes_of(str(tmp_path), "tunemesh-joiner", worker, broker)._path for worker, broker in (("0", "a:1"), ("1", "a:1"), ("0", "b:1"))
    }
    assert len(paths) == 3
    assert all(path is not None and path.parent == tmp_path for path in paths)
