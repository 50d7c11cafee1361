"""The body of a delta: absolute rows, tombstones and dense weights as bytes. Pure; `delta_chunks` cuts it into records.

Body, version 1 (integers are LEB128 varints, texts are length + UTF-8, numbers little-endian):

    version (1)
    number of tables, and per table, by name:
        name, dim, number of ids, number of tombstones
        ids, then tombstones: the first zigzag-encoded, then the gaps, all > 0
        rows of the ids: fp32, bf16 (round to nearest even), or per row a fp32 scale and then int8
    number of dense tensors, 0 for none, and per tensor, by name: name, number of axes, axes, fp32 values

Dense weights are always fp32 and always the complete set. The schema hash in the header fixes which tables, dims and tensors there are.
Knows nothing of Kafka, tables in memory, epochs or sequence numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1 import delta_pb2

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.atomics import kernel

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_VERSION = 1
_MAX_VARINT_BYTES = 10
_MAX_AXES = 8
# What a size may be at most, so that no product of sizes leaves the range that numpy can shape. The body's length bounds what is there.
_MAX_SIZE = 1 << 40
_MAX_DIM = 1 << 16
_INT8_MAX = 127
_ROUND_ROWS_AT_ONCE = 65_536
_UINT64_MAX = (1 << 64) - 1

_SEVEN = np.uint64(7)
_LOW_BITS, _MORE_BIT = np.uint64(0x7F), np.uint64(0x80)
_ZERO, _ONE, _SIGN_SHIFT = np.uint64(0), np.uint64(1), np.uint64(63)
_ROW_DTYPES: dict[int, np.dtype[Any]] = {
    delta_pb2.ROW_DTYPE_FP32: np.dtype("<f4"),
    delta_pb2.ROW_DTYPE_BF16: np.dtype("<u2"),
    delta_pb2.ROW_DTYPE_INT8_ROWWISE: np.dtype("<i1"),
}


@dataclass(frozen=True, slots=True, eq=False)
class TableDelta:
    """What changed in one table.

    Attributes:
        ids: int64 [U], strictly ascending.
        rows: float32 [U, dim].
        tombstones: int64 [V], strictly ascending, disjoint from ids: ids that have no row any more.
    """

    ids: Int64s
    rows: Float32s
    tombstones: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class DeltaBody:
    """All that changed: per table its rows and tombstones; `dense` holds every tensor, or is None when none changed."""

    tables: Mapping[str, TableDelta] = field(default_factory=dict)
    dense: Mapping[str, Float32s] | None = None


def encode_body(body: DeltaBody, dtype: delta_pb2.RowDtype) -> bytes:
    """Return the bytes of `body`, the same for equal bodies.

    Raises:
        ValueError: ids do not strictly ascend, shapes do not match or are too large, a row for int8 is not finite, or the dtype is unknown.
    """
    parts = [bytes([_VERSION]), _uvarint(len(body.tables))]
    for name, table in sorted(body.tables.items()):
        if table.rows.ndim != 2 or table.rows.shape[0] != table.ids.size or table.rows.shape[1] > _MAX_DIM:
            raise ValueError(f"table {name!r}: {table.ids.size} ids, but rows of shape {table.rows.shape}")
        parts += [_text(name), _uvarint(table.rows.shape[1]), _uvarint(table.ids.size), _uvarint(table.tombstones.size)]
        parts += [_encode_ids(name, table.ids), _encode_ids(name, table.tombstones), _encode_rows(name, table.rows, dtype)]
    dense = body.dense or {}
    parts.append(_uvarint(len(dense)))
    for name, tensor in sorted(dense.items()):
        parts += [_text(name), _uvarint(tensor.ndim), *(_uvarint(axis) for axis in tensor.shape)]
        parts.append(np.ascontiguousarray(tensor, "<f4").tobytes())
    return b"".join(parts)


def decode_body(encoded: bytes, dtype: delta_pb2.RowDtype) -> DeltaBody:
    """Return the body that `encode_body` was given, rows as exact as `dtype` is.

    Raises:
        CorruptArtifact: the bytes are not a body of this version; says where.
    """
    if dtype not in _ROW_DTYPES:
        raise CorruptArtifact(f"delta body: unknown row dtype {dtype}")
    cursor = _Cursor(encoded)
    version = cursor.uvarint("version")
    if version != _VERSION:
        raise CorruptArtifact(f"delta body: format version {version}, this program reads {_VERSION}")
    tables: dict[str, TableDelta] = {}
    last = None
    for _ in range(cursor.uvarint("number of tables")):
        name = last = cursor.name("table name", after=last)
        dim, num_ids, num_tombstones = (cursor.uvarint(f"sizes of table {name!r}") for _ in range(3))
        if dim > _MAX_DIM:
            raise CorruptArtifact(f"delta body: the rows of table {name!r} have {dim} numbers each")
        ids, tombstones = cursor.ids(num_ids, name), cursor.ids(num_tombstones, name)
        tables[name] = TableDelta(ids, _decode_rows(cursor, num_ids, dim, dtype, name), tombstones)
    dense: dict[str, Float32s] = {}
    last = None
    for _ in range(cursor.uvarint("number of dense tensors")):
        name = last = cursor.name("tensor name", after=last)
        shape = cursor.shape(name)
        dense[name] = cursor.array(np.dtype("<f4"), math.prod(shape), f"tensor {name!r}").reshape(shape).astype(np.float32)
    cursor.expect_end()
    return DeltaBody(tables, dense or None)


def rounded(rows: Float32s, dtype: delta_pb2.RowDtype) -> Float32s:
    """Return the rows as replicas have them that got them by deltas of this dtype: a base must hold just these.

    Args:
        rows: float32 [N, dim], finite for int8.
        dtype: of the deltas.
    Returns:
        float32 [N, dim]; `rows` itself for fp32.
    """
    if dtype == delta_pb2.ROW_DTYPE_FP32:
        return rows
    result = np.empty_like(rows)
    for start in range(0, rows.shape[0], _ROUND_ROWS_AT_ONCE):
        some = rows[start : start + _ROUND_ROWS_AT_ONCE]
        cursor = _Cursor(_encode_rows("rows", some, dtype))
        result[start : start + some.shape[0]] = _decode_rows(cursor, some.shape[0], some.shape[1], dtype, "rows")
    return result


@kernel
def _write_varints(values: NDArray[np.uint64], out: Bytes) -> int:
    position = 0
    for value in values:
        while value > _LOW_BITS:
            out[position] = np.uint8((value & _LOW_BITS) | _MORE_BIT)
            value = value >> _SEVEN
            position += 1
        out[position] = np.uint8(value)
        position += 1
    return position


@kernel
def _read_ids(encoded: Bytes, ids: Int64s) -> int:
    """Fill `ids` [N] from the front of `encoded`; return the bytes used, or -1 if they are not N ascending ids."""
    position = 0
    current = _ZERO
    for i in range(ids.size):
        value, shift = _ZERO, _ZERO
        while True:
            if position >= encoded.size or shift > _SIGN_SHIFT:
                return -1
            byte = np.uint64(encoded[position])
            position += 1
            if shift == _SIGN_SHIFT and byte > _ONE:
                return -1
            value = value | ((byte & _LOW_BITS) << shift)
            shift = shift + _SEVEN
            if byte < _MORE_BIT:
                break
        current = current + value if i > 0 else (value >> _ONE) ^ (_ZERO - (value & _ONE))
        ids[i] = np.int64(current)
        if i > 0 and ids[i] <= ids[i - 1]:
            return -1
    return position


def _uvarint(value: int) -> bytes:
    out = np.empty(_MAX_VARINT_BYTES, np.uint8)
    return out[: _write_varints(np.array([value], np.uint64), out)].tobytes()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _uvarint(len(encoded)) + encoded


def _encode_ids(name: str, ids: Int64s) -> bytes:
    if ids.size == 0:
        return b""
    if np.any(ids[1:] <= ids[:-1]):
        raise ValueError(f"table {name!r}: ids are not strictly ascending")
    values = np.empty(ids.size, np.uint64)
    first = int(ids[0])
    values[0] = ((first << 1) ^ (first >> 63)) & _UINT64_MAX
    # Modulo 2**64 the gap is right even from the least to the greatest int64.
    values[1:] = ids[1:].view(np.uint64) - ids[:-1].view(np.uint64)
    out = np.empty(_MAX_VARINT_BYTES * ids.size, np.uint8)
    return out[: _write_varints(values, out)].tobytes()


def _encode_rows(name: str, rows: Float32s, dtype: delta_pb2.RowDtype) -> bytes:
    rows = np.ascontiguousarray(rows, "<f4")
    if dtype == delta_pb2.ROW_DTYPE_FP32:
        return rows.tobytes()
    if dtype == delta_pb2.ROW_DTYPE_BF16:
        bits = rows.view("<u4")
        rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        # Rounding a NaN's payload could carry into the exponent and sign.
        quiet: NDArray[np.uint16] = np.where(np.isnan(rows), 0x7FC0, rounded).astype("<u2")
        return quiet.tobytes()
    if dtype == delta_pb2.ROW_DTYPE_INT8_ROWWISE:
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"table {name!r}: a row is not finite and has no int8 form")
        scales = (np.abs(rows).max(axis=1, initial=0.0) / _INT8_MAX).astype("<f4")
        # A row too small for a scale (below 127 denormals) is stored as zeros.
        steps = np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=scales[:, None] > 0)
        steps = np.clip(np.rint(steps), -_INT8_MAX, _INT8_MAX)
        return bytes(scales.tobytes() + steps.astype("<i1").tobytes())
    raise ValueError(f"unknown row dtype {dtype}")


def _decode_rows(cursor: _Cursor, num_rows: int, dim: int, dtype: delta_pb2.RowDtype, name: str) -> Float32s:
    what = f"rows of table {name!r}"
    if dtype == delta_pb2.ROW_DTYPE_INT8_ROWWISE:
        scales = cursor.array(np.dtype("<f4"), num_rows, what)
        steps = cursor.array(_ROW_DTYPES[dtype], num_rows * dim, what).reshape(num_rows, dim)
        with np.errstate(over="ignore", invalid="ignore"):
            rows: Float32s = steps.astype(np.float32) * scales.astype(np.float32)[:, None]
        if not np.isfinite(rows).all():
            raise CorruptArtifact(f"delta body: a scale of {what} is none of a finite row")
        return rows
    stored = cursor.array(_ROW_DTYPES[dtype], num_rows * dim, what).reshape(num_rows, dim)
    if dtype == delta_pb2.ROW_DTYPE_BF16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


class _Cursor:
    """Reads an encoded body from front to back; every step is checked against what is left."""

    def __init__(self, encoded: bytes) -> None:
        self._bytes: Bytes = np.frombuffer(encoded, np.uint8)
        self._position = 0

    def uvarint(self, what: str) -> int:
        value = 0
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            if self._position >= self._bytes.size:
                raise CorruptArtifact(f"delta body: ends in the {what}")
            byte = int(self._bytes[self._position])
            self._position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _MAX_SIZE:
                    raise CorruptArtifact(f"delta body: {value} is no size ({what})")
                return value
        raise CorruptArtifact(f"delta body: no end of the number at {what}")

    def text(self, what: str) -> str:
        raw = self.array(np.dtype(np.uint8), self.uvarint(what), what).tobytes()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise CorruptArtifact(f"delta body: {what} is not UTF-8") from error

    def name(self, what: str, *, after: str | None) -> str:
        """Return a name; names ascend."""
        name = self.text(what)
        if after is not None and name <= after:
            raise CorruptArtifact(f"delta body: {what} {name!r} does not come behind the one before")
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        num_axes = self.uvarint(f"axes of {name!r}")
        if num_axes > _MAX_AXES:
            raise CorruptArtifact(f"delta body: tensor {name!r} has {num_axes} axes")
        shape = tuple(self.uvarint(f"axes of {name!r}") for _ in range(num_axes))
        # numpy refuses a shape whose axes, taken without the zeros among them, are too many numbers.
        if math.prod(axis or 1 for axis in shape) > _MAX_SIZE:
            raise CorruptArtifact(f"delta body: tensor {name!r} has shape {shape}")
        return shape

    def ids(self, count: int, table: str) -> Int64s:
        rest = self._bytes[self._position :]
        # Every id takes a byte at least: a damaged count must not reserve memory.
        if count > rest.size:
            raise CorruptArtifact(f"delta body: ends in the ids of table {table!r}")
        ids = np.empty(count, np.int64)
        used = _read_ids(rest, ids)
        if used < 0:
            raise CorruptArtifact(f"delta body: the ids of table {table!r} are cut off or not ascending")
        self._position += used
        return ids

    def array(self, dtype: np.dtype[Any], count: int, what: str) -> NDArray[Any]:
        """Return `count` numbers as a view of the body."""
        end = self._position + count * dtype.itemsize
        if end > self._bytes.size:
            raise CorruptArtifact(f"delta body: ends in the {what}")
        view = self._bytes[self._position : end].view(dtype)
        self._position = end
        return view

    def expect_end(self) -> None:
        if self._position != self._bytes.size:
            raise CorruptArtifact(f"delta body: {self._bytes.size - self._position} bytes too many")
