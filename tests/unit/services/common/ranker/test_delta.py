"""The delta codec: what goes in comes out, and damage never does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunemesh.events.v1 import delta_pb2

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.delta import DeltaBody, TableDelta, decode_body, encode_body, rounded
from services.common.ranker.delta_chunks import Reassembler, chunk, parse_chunk
from tests.fuzzing import Damage

FP32, BF16, INT8 = delta_pb2.ROW_DTYPE_FP32, delta_pb2.ROW_DTYPE_BF16, delta_pb2.ROW_DTYPE_INT8_ROWWISE
INT64 = np.iinfo(np.int64)
KEYS = st.sampled_from([INT64.min, -1, 0, 1, INT64.max]) | st.integers(-300, 300) | st.integers(INT64.min, INT64.max)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


def int64s(values) -> np.ndarray:
    return np.array(sorted(values), np.int64)


@st.composite
def table_deltas(draw) -> TableDelta:
    keys = draw(st.lists(KEYS, unique=True, max_size=30))
    cut = draw(st.integers(0, len(keys)))
    dim = draw(st.integers(1, 5))
    values = draw(st.lists(FINITE, min_size=cut * dim, max_size=cut * dim))
    return TableDelta(int64s(keys[:cut]), np.array(values, np.float32).reshape(cut, dim), int64s(keys[cut:]))


@st.composite
def bodies(draw) -> DeltaBody:
    names = st.text(max_size=8)
    tensors = st.lists(FINITE, max_size=6).map(lambda values: np.array(values, np.float32)) | st.just(np.ones((2, 3, 1), np.float32))
    dense = draw(st.none() | st.dictionaries(names, tensors, min_size=1, max_size=3))
    return DeltaBody(draw(st.dictionaries(names, table_deltas(), max_size=3)), dense)


def assert_same(one: DeltaBody, other: DeltaBody) -> None:
    assert one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        np.testing.assert_array_equal(table.ids, other.tables[name].ids)
        np.testing.assert_array_equal(table.rows, other.tables[name].rows)
        np.testing.assert_array_equal(table.tombstones, other.tables[name].tombstones)
    assert (one.dense is None) == (other.dense is None)
    for name, tensor in (one.dense or {}).items():
        np.testing.assert_array_equal(tensor, other.dense[name], strict=True)


def sample_body(num_rows: int = 50) -> DeltaBody:
    rng = np.random.default_rng(3)
    ids = np.unique(rng.integers(INT64.min, INT64.max, num_rows))
    rows = rng.normal(size=(ids.size, 4)).astype(np.float32)
    return DeltaBody({"user": TableDelta(ids, rows, int64s([5, 7]))}, {"w": rng.normal(size=(3, 2)).astype(np.float32)})


@settings(deadline=None)
@given(bodies())
def test_fp32_bodies_come_back_bit_for_bit(body):
    assert_same(body, decode_body(encode_body(body, FP32), FP32))


@settings(deadline=None)
@given(bodies())
def test_bf16_rows_come_back_within_half_a_step_and_a_second_trip_changes_nothing(body):
    once = decode_body(encode_body(body, BF16), BF16)
    for name, table in body.tables.items():
        np.testing.assert_allclose(once.tables[name].rows, table.rows, rtol=2**-8, atol=1e-38)
    assert_same(once, decode_body(encode_body(once, BF16), BF16))


@settings(deadline=None)
@given(bodies())
def test_int8_rows_come_back_within_half_a_step_of_their_rows_maximum(body):
    once = decode_body(encode_body(body, INT8), INT8)
    for name, table in body.tables.items():
        limit = np.abs(table.rows).max(axis=1, initial=0) / 127 * 0.51 + 1e-36
        assert np.all(np.abs(once.tables[name].rows - table.rows) <= limit[:, None])


@settings(deadline=None)
@given(bodies(), st.data())
def test_a_cut_body_is_refused_and_a_changed_one_never_crashes(body, data):
    encoded = encode_body(body, FP32)
    with pytest.raises(CorruptArtifact):
        decode_body(encoded[: data.draw(st.integers(0, len(encoded) - 1))], FP32)
    position = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode_body(bytes(changed), FP32)
    except CorruptArtifact as error:
        assert "delta body" in str(error)


def test_the_bytes_of_a_body_do_not_change_between_releases():
    body = DeltaBody({"t": TableDelta(int64s([INT64.min, 0, INT64.max]), np.ones((3, 1), np.float32), int64s([-1]))}, None)
    one = "0000803f"
    ids = "ffffffffffffffffff01" + "80808080808080808001" + "ffffffffffffffff7f"
    assert encode_body(body, FP32).hex() == "01" + "01" + "0174" + "01" + "03" + "01" + ids + "01" + one * 3 + "00"


def test_bf16_keeps_infinities_and_nans():
    rows = np.array([[np.inf, -np.inf, np.nan, 1.00390625]], np.float32)
    decoded = decode_body(encode_body(DeltaBody({"t": TableDelta(int64s([1]), rows, int64s([]))}), BF16), BF16)
    np.testing.assert_array_equal(decoded.tables["t"].rows, [[np.inf, -np.inf, np.nan, 1.0]])


def test_rows_that_are_not_finite_have_no_int8_form():
    rows = np.array([[np.nan]], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        encode_body(DeltaBody({"t": TableDelta(int64s([1]), rows, int64s([]))}), INT8)


@pytest.mark.parametrize("ids", [[2, 1], [1, 1]])
def test_ids_must_ascend(ids):
    with pytest.raises(ValueError, match="ascending"):
        encode_body(DeltaBody({"t": TableDelta(np.array(ids, np.int64), np.zeros((2, 1), np.float32), int64s([]))}), FP32)


def test_trailing_bytes_unknown_versions_and_dtypes_are_refused():
    encoded = encode_body(sample_body(), FP32)
    with pytest.raises(CorruptArtifact, match="1 bytes too many"):
        decode_body(encoded + b"\0", FP32)
    with pytest.raises(CorruptArtifact, match="version 2"):
        decode_body(b"\x02" + encoded[1:], FP32)
    with pytest.raises(CorruptArtifact, match="dtype"):
        decode_body(encoded, 99)


def header(**fields) -> delta_pb2.DeltaHeader:
    return delta_pb2.DeltaHeader(**({"epoch": 1, "seq": 4, "prev_seq": 3, "dtype": FP32} | fields))


def test_chunks_are_applied_as_one():
    body = sample_body(1000)
    records = chunk(header(), encode_body(body, FP32), max_bytes=1000)
    assert len(records) > 3
    assert all(len(record.SerializeToString()) < 1200 for record in records)
    reassembler = Reassembler()
    for record in records[:-1]:
        assert reassembler.add(record) is None
    assert_same(reassembler.add(records[-1]).decode(), body)
    assert reassembler.is_empty


def test_a_heartbeat_has_one_record_and_no_body():
    (record,) = chunk(header(heartbeat=True), b"")
    complete = Reassembler().add(record)
    assert complete.header.heartbeat
    assert_same(complete.decode(), DeltaBody())


def test_a_repeated_chunk_is_ignored():
    records = chunk(header(), encode_body(sample_body(), FP32), max_bytes=300)
    reassembler = Reassembler()
    done = [reassembler.add(record) for record in [records[0], records[0], *records[1:]]]
    assert_same(done[-1].decode(), sample_body())


def test_a_missing_chunk_is_noticed():
    records = chunk(header(), encode_body(sample_body(), FP32), max_bytes=300)
    reassembler = Reassembler()
    reassembler.add(records[0])
    with pytest.raises(CorruptArtifact, match="chunk 2 came after 1 chunks"):
        reassembler.add(records[2])
    assert reassembler.is_empty


def test_a_head_without_its_tail_is_dropped_when_the_next_delta_begins():
    dead = chunk(header(), encode_body(sample_body(), FP32), max_bytes=300)
    reassembler = Reassembler()
    reassembler.add(dead[0])
    (alive,) = chunk(header(epoch=2, seq=0), encode_body(sample_body(3), FP32))
    assert_same(reassembler.add(alive).decode(), sample_body(3))


def test_a_flipped_bit_fails_the_checksum():
    (record,) = chunk(header(), encode_body(sample_body(), FP32))
    record.body = bytes([record.body[0] ^ 1]) + record.body[1:]
    with pytest.raises(CorruptArtifact, match=r"delta 1\.4: the body's CRC32C"):
        Reassembler().add(record)


@pytest.mark.parametrize(("index", "count"), [(0, 0), (2, 2)])
def test_impossible_chunk_numbers_are_refused(index, count):
    with pytest.raises(CorruptArtifact, match="chunk"):
        Reassembler().add(delta_pb2.Delta(header=header(), chunk_index=index, chunk_count=count))


def test_the_chunks_of_two_epochs_may_lie_among_each_other():
    body = encode_body(sample_body(), FP32)
    old, new = chunk(header(), body, max_bytes=300), chunk(header(epoch=2, seq=0), body, max_bytes=300)
    reassembler = Reassembler()
    done = [reassembler.add(record) for pair in zip(old, new, strict=True) for record in pair]
    assert [complete.header.epoch for complete in done if complete is not None] == [1, 2]
    assert reassembler.is_empty


def test_heads_of_many_epochs_are_not_kept():
    reassembler = Reassembler()
    for epoch in range(1, 1000):
        reassembler.add(delta_pb2.Delta(header=header(epoch=epoch), chunk_index=0, chunk_count=2, body=b"x"))
    assert len(reassembler._open) == 2


@pytest.mark.parametrize("dtype", [FP32, BF16, INT8])
def test_rounded_rows_are_those_that_a_delta_brings(dtype):
    rows = np.random.default_rng(5).normal(size=(70_000, 3)).astype(np.float32)
    body = DeltaBody({"t": TableDelta(np.arange(70_000), rows, int64s([]))})
    np.testing.assert_array_equal(rounded(rows, dtype), decode_body(encode_body(body, dtype), dtype).tables["t"].rows)


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        ("01" + "01" + "0174" + "ffffffffffffffffff01" + "0000" + "00", "is no size"),
        ("01" + "01" + "0174" + "80808004" + "0000" + "00", "have 8388608 numbers each"),
        ("01" + "00" + "01" + "0177" + "03" + "00" + "80808080800880808080800800"[:-2], "has shape"),
        ("01" + "00" + "02" + "0177" + "0100" + "0177" + "0100", "does not come behind"),
        ("01" + "02" + "0174" + "010000" + "0174" + "010000" + "00", "does not come behind"),
    ],
)
def test_sizes_that_no_body_has_are_refused(encoded, says):
    with pytest.raises(CorruptArtifact, match=says):
        decode_body(bytes.fromhex(encoded), FP32)


def right_bodies() -> list[tuple[bytes, delta_pb2.RowDtype]]:
    small = DeltaBody({"a": TableDelta(int64s([]), np.empty((0, 3), np.float32), int64s([1])), "b": sample_body(3).tables["user"]})
    scalar = DeltaBody({}, {"s": np.ones((), np.float32), "none": np.ones((2, 0, 3), np.float32)})
    return [(encode_body(body, dtype), dtype) for body in (sample_body(3), small, scalar) for dtype in (FP32, BF16, INT8)]


def read_damaged_bodies(num_inputs: int, *, seed: int) -> int:
    """Decode damaged bodies; return how many were refused. Anything but CorruptArtifact escapes."""
    right = [encoded for encoded, _ in right_bodies()]
    damage, refused = Damage(seed), 0
    for number in range(num_inputs):
        try:
            decode_body(damage.of_bytes(right), (FP32, BF16, INT8)[number % 3])
        except CorruptArtifact:
            refused += 1
    return refused


def read_damaged_records(num_inputs: int, *, seed: int) -> int:
    """Parse, put together and decode damaged records in one long log; return how many were refused."""
    right = [
        record.SerializeToString()
        for number, (encoded, dtype) in enumerate(right_bodies())
        for record in chunk(header(seq=number, dtype=dtype), encoded, max_bytes=40)
    ]
    damage, reassembler, refused = Damage(seed), Reassembler(), 0
    for _ in range(num_inputs):
        try:
            complete = reassembler.add(parse_chunk(damage.of_bytes(right)))
            if complete is not None:
                complete.decode()
        except CorruptArtifact:
            refused += 1
    return refused


def test_damaged_bodies_are_read_or_refused_with_one_error():
    assert read_damaged_bodies(4_000, seed=7) > 2_000


def test_damaged_records_are_read_or_refused_with_one_error():
    assert read_damaged_records(2_000, seed=8) > 500
