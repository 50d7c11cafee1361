import errno
from pathlib import Path

import pytest

from services.common.platform.errors import ConfigurationError
from services.common.platform.kafka_record import Record
from services.router import spool as spool_module
from services.router.spool import Spool


def record(number: int, size: int = 10) -> Record:
    return Record(
        "exposures.v1", f"user-{number}".encode(), bytes([number % 256]) * size, [("ce_id", str(number).encode()), ("empty", b"")]
    )


opened: list[Spool] = []


def open_spool(folder, max_bytes: int = 10_000_000) -> Spool:
    opened.append(Spool(folder, max_bytes=max_bytes, variable="TUNEMESH_ROUTER_SPOOL_DIR"))
    return opened[-1]


@pytest.fixture(autouse=True)
def close_spools():
    yield
    while opened:
        opened.pop().close()


def drain(spool: Spool, step: int = 7) -> list[Record]:
    records: list[Record] = []
    while batch := spool.peek(step):
        records += batch
        spool.advance(len(batch))
    return records


def test_records_come_back_whole_and_in_order_across_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 500)
    spool = open_spool(tmp_path)
    records = [record(number) for number in range(100)]
    for start in range(0, 100, 9):
        batch = records[start : start + 9]
        assert spool.append(batch) == len(batch)
    assert len(list(tmp_path.glob("*.spool"))) > 3
    assert drain(spool) == records
    assert spool.empty and spool.num_bytes == 0
    assert list(tmp_path.glob("*.spool")) == []


def test_what_is_peeked_stays_until_it_is_acknowledged(tmp_path):
    spool = open_spool(tmp_path)
    spool.append([record(1), record(2)])
    assert spool.peek(1) == spool.peek(1) == [record(1)]
    spool.advance(1)
    assert spool.peek(5) == [record(2)]
    assert not spool.empty


def test_records_may_be_appended_while_older_ones_are_read(tmp_path):
    spool = open_spool(tmp_path)
    spool.append([record(1), record(2)])
    assert spool.peek(1) == [record(1)]
    spool.append([record(3)])
    assert drain(spool) == [record(1), record(2), record(3)]


def test_a_later_process_finds_what_an_earlier_one_left(tmp_path):
    first = open_spool(tmp_path)
    first.append([record(1), record(2)])
    first.close()
    second = open_spool(tmp_path)
    assert not second.empty and second.num_bytes > 0
    second.append([record(3)])
    assert drain(second) == [record(1), record(2), record(3)]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_record_that_its_writer_left_half_written_is_left_out_and_counted(tmp_path, cut):
    first = open_spool(tmp_path)
    first.append([record(1), record(2)])
    first.close()
    (segment,) = tmp_path.glob("*.spool")
    segment.write_bytes(segment.read_bytes()[:-cut])
    second = open_spool(tmp_path)
    second.append([record(3)])
    assert drain(second) == [record(1), record(3)]
    assert second.num_unreadable_bytes > 0


def test_a_damaged_record_is_never_sent(tmp_path):
    first = open_spool(tmp_path)
    first.append([record(1)])
    first.close()
    (segment,) = tmp_path.glob("*.spool")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 0xFF
    segment.write_bytes(bytes(data))
    assert drain(open_spool(tmp_path)) == []


def test_a_full_spool_takes_what_fits_and_says_how_much_that_is(tmp_path):
    spool = open_spool(tmp_path, max_bytes=250)
    assert spool.append([record(number) for number in range(10)]) == 3
    assert spool.append([record(99)]) == 0
    assert drain(spool) == [record(0), record(1), record(2)]
    assert spool.append([record(4)]) == 1


def test_a_disk_that_refuses_costs_only_what_was_being_written(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    spool.append([record(1)])

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            spool.append([record(2)])
    spool.append([record(3)])
    assert record(1) in (records := drain(spool)) and records[-1] == record(3)


def test_a_segment_that_cannot_be_read_now_stays_and_is_read_later_or_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 50)
    spool = open_spool(tmp_path)
    for number in range(3):
        spool.append([record(number, 60)])
    read_bytes = Path.read_bytes

    def fails(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fails)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            spool.peek(5)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert spool.peek(5) == [record(0, 60)]
    spool.advance(1)
    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match="Input/output error"):
        spool.peek(5)
    assert spool.set_aside() > 60
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert drain(spool) == [record(2, 60)]
    assert spool.empty and spool.num_bytes == 0
    assert [path.suffix for path in tmp_path.glob("0*")] == [".unreadable"]


def test_a_folder_of_a_running_router_is_refused_and_the_setting_named(tmp_path):
    spool = open_spool(tmp_path)
    with pytest.raises(ConfigurationError, match="TUNEMESH_ROUTER_SPOOL_DIR"):
        open_spool(tmp_path)
    spool.close()
    open_spool(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_refused_and_the_setting_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="TUNEMESH_ROUTER_SPOOL_DIR"):
        open_spool(tmp_path / "file" / "spool")
