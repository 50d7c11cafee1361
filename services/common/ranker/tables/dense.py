"""The dense weights of an edition in a mapped file: two buffers, of which readers copy one while the writer fills the other.

    layout.json   names and shapes of the tensors, in the order in which their values lie in a buffer
    dense         magic, format version, number of the current buffer, CRC of layout.json; then per buffer: lock and checksum (`checks`),
                  epoch, seq, values float32

A reader copies the current buffer between two looks at its lock, so what it takes is whole and of one version even if the writer comes
round to that buffer meanwhile. It copies when the weights change, so it can afford to check the copy: damaged weights are never used.
Knows nothing of networks.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.atomics import fence_acquire, fence_release, kernel, load_acquire, load_relaxed, store_release
from services.common.ranker.tables.checks import SEQUENCE_MASK, TableDamaged, checksum_in, is_sealed, sealed, sum_of
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.mapped import RowBusy
from services.common.ranker.tables.words import create_words, map_words

Float32s = NDArray[np.float32]

_LAYOUT_FILE = "layout.json"
_DENSE_FILE = "dense"
_MAGIC = 0x45534E45444D54  # "TMDENSE", little-endian
_FORMAT_VERSION = 2
_HEADER_WORDS = 8
_MAGIC_AT, _FORMAT_AT, _CURRENT_AT, _LAYOUT_CRC_AT = range(4)
_BUFFER_HEADER_WORDS = 8
_LOCK_AT, _EPOCH_AT, _SEQ_AT = range(3)
_MAX_LOOKS = 1000
# What names the current buffer: words many bits apart, so that damage to one does not make it the other.
_FIRST, _SECOND = 0x5453524946, 0x444E4F434553
_COPIED, _UNCHANGED, _BUSY, _DAMAGED = 1, 0, -1, -2


@dataclass(frozen=True, slots=True, eq=False)
class DenseView:
    """Dense weights, whole and of one version.

    Attributes:
        version: (epoch, seq) of the delta or base that set them.
        tensors: float32 by name; read-only.
    """

    version: tuple[int, int]
    tensors: Mapping[str, Float32s]


@kernel
def _change_buffer(words: Int64s, floats: Float32s, buffer_words: int, number: int, values: Float32s, epoch: int, seq: int) -> None:
    """Fill buffer `number`, which is not current, then make it current."""
    base = _HEADER_WORDS + number * buffer_words
    # A writer that died in here left the lock odd; its successor goes on from the even number above.
    sequence = words[base + _LOCK_AT] & SEQUENCE_MASK | 1
    store_release(words, base + _LOCK_AT, sequence)
    fence_release()
    words[base + _EPOCH_AT] = epoch
    words[base + _SEQ_AT] = seq
    first = 2 * (base + _BUFFER_HEADER_WORDS)
    for i in range(values.size):
        floats[first + i] = values[i]
    store_release(words, base + _LOCK_AT, sealed(sequence + 1, sum_of(words, base + 1, buffer_words - 1)))
    store_release(words, _CURRENT_AT, np.int64(_SECOND if number else _FIRST))


@kernel
def _copy_current(words: Int64s, floats: Float32s, buffer_words: int, known: Int64s, values: Float32s) -> int:
    """Copy the current buffer unless it is the `known` one [number, lock]; sets `known`.

    Returns _COPIED, _UNCHANGED, _BUSY when the writer stayed in it, or _DAMAGED.
    """
    for _ in range(_MAX_LOOKS):
        current = load_acquire(words, _CURRENT_AT)
        if current not in (_FIRST, _SECOND):
            return _DAMAGED
        number = 1 if current == _SECOND else 0
        base = _HEADER_WORDS + number * buffer_words
        lock = load_acquire(words, base + _LOCK_AT)
        if lock & 1:
            continue
        if known[0] == number and known[1] == lock:
            return _UNCHANGED
        epoch, seq = words[base + _EPOCH_AT], words[base + _SEQ_AT]
        first = 2 * (base + _BUFFER_HEADER_WORDS)
        for i in range(values.size):
            values[i] = floats[first + i]
        checksum = sum_of(words, base + 1, buffer_words - 1)
        fence_acquire()
        if load_relaxed(words, base + _LOCK_AT) == lock:
            if checksum != checksum_in(lock):
                return _DAMAGED
            known[0], known[1], known[2], known[3] = number, lock, epoch, seq
            return _COPIED
    return _BUSY


class _Layout:
    """Where each tensor lies in a buffer."""

    def __init__(self, folder: Path) -> None:
        """Read the layout. Raises FileNotFoundError or CorruptArtifact."""
        raw = (folder / _LAYOUT_FILE).read_bytes()
        self.crc = zlib.crc32(raw)
        try:
            self.shapes = {str(name): tuple(int(axis) for axis in shape) for name, shape in json.loads(raw)}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptArtifact(f"{folder / _LAYOUT_FILE} cannot be understood: {error}") from error
        if any(axis < 0 for shape in self.shapes.values() for axis in shape):
            raise CorruptArtifact(f"{folder / _LAYOUT_FILE} has a negative shape")
        self.num_values = sum(math.prod(shape) for shape in self.shapes.values())
        # Whole cache lines, so that the writer of one buffer does not disturb the readers of the other.
        self.buffer_words = _BUFFER_HEADER_WORDS + -(-self.num_values // 16) * 8

    @property
    def num_words(self) -> int:
        return _HEADER_WORDS + 2 * self.buffer_words

    def split(self, values: Float32s) -> dict[str, Float32s]:
        tensors, start = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            tensors[name] = values[start : start + size].reshape(shape)
            start += size
        return tensors


class DenseWriter:
    """Writes the dense weights of one edition; the tensors' names and shapes stay as they were at its creation."""

    def __init__(self, folder: Path) -> None:
        """Map existing weights for writing. Raises FileNotFoundError or CorruptArtifact."""
        self._folder = folder
        self._layout = _Layout(folder)
        self._words = map_words(folder / _DENSE_FILE, writable=True)
        _check(folder / _DENSE_FILE, self._words, self._layout)
        self._current = 1 if self._words[_CURRENT_AT] == _SECOND else 0
        self.check_memory()

    @classmethod
    def create(cls, folder: Path, tensors: Mapping[str, Float32s], *, epoch: int, seq: int) -> DenseWriter:
        """Make the files with these weights, which may be none."""
        layout = [[name, list(tensor.shape)] for name, tensor in sorted(tensors.items())]
        (folder / _LAYOUT_FILE).write_text(json.dumps(layout))
        words = create_words(folder / _DENSE_FILE, _Layout(folder).num_words)
        words[_MAGIC_AT], words[_FORMAT_AT], words[_LAYOUT_CRC_AT] = _MAGIC, _FORMAT_VERSION, _Layout(folder).crc
        buffer_words = _Layout(folder).buffer_words
        words[_CURRENT_AT] = _FIRST
        words[_HEADER_WORDS] = sealed(0, sum_of(words, _HEADER_WORDS + 1, buffer_words - 1))
        writer = cls(folder)
        writer.change(tensors, epoch=epoch, seq=seq)
        return writer

    def check(self, tensors: Mapping[str, Float32s]) -> None:
        """Raise CorruptArtifact unless `tensors` are the complete set, each in its shape."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != self._layout.shapes:
            different = sorted(
                name for name in shapes.keys() | self._layout.shapes.keys() if shapes.get(name) != self._layout.shapes.get(name)
            )
            name = different[0]
            raise CorruptArtifact(f"dense tensor {name!r} has shape {shapes.get(name)}, this model has {self._layout.shapes.get(name)}")

    def change(self, tensors: Mapping[str, Float32s], *, epoch: int, seq: int) -> None:
        """Replace all weights at once. Raises CorruptArtifact, before anything is written, if they are not the complete set."""
        self.check(tensors)
        flat = [np.ascontiguousarray(tensors[name], np.float32).ravel() for name in self._layout.shapes]
        values = np.concatenate(flat) if flat else np.empty(0, np.float32)
        number = 1 - self._current
        _change_buffer(self._words, self._words.view(np.float32), self._layout.buffer_words, number, values, epoch, seq)
        self._current = number

    def check_memory(self) -> None:
        """Raise TableDamaged if the header, the layout or the current weights changed by themselves."""
        words, buffer_words = self._words, self._layout.buffer_words
        if words[_CURRENT_AT] != (_SECOND if self._current else _FIRST):
            raise TableDamaged(f"dense weights in {self._folder}: the header changed by itself")
        if not is_sealed(words, _HEADER_WORDS + self._current * buffer_words, buffer_words):
            raise TableDamaged(f"dense weights in {self._folder} are not what was written")
        if _Layout(self._folder).crc != self._layout.crc:
            raise TableDamaged(f"the layout of the dense weights in {self._folder} changed by itself")
        _check(self._folder / _DENSE_FILE, words, self._layout)


class DenseReader:
    """Reads the dense weights of one edition."""

    def __init__(self, folder: Path) -> None:
        """Map them read-only. Raises FileNotFoundError or CorruptArtifact."""
        self._layout = _Layout(folder)
        self._words = map_words(folder / _DENSE_FILE, writable=False)
        _check(folder / _DENSE_FILE, self._words, self._layout)
        self._floats = self._words.view(np.float32)
        self._cached: tuple[Int64s, DenseView] | None = None

    def read(self) -> DenseView:
        """Return the current weights; the same object until they change.

        Raises:
            RowBusy: the writer is in the current buffer and did not come out.
            TableDamaged: the weights are not what was written.
        """
        cached = self._cached
        known = np.full(4, -1, np.int64) if cached is None else cached[0].copy()
        values = np.empty(self._layout.num_values, np.float32)
        outcome = _copy_current(self._words, self._floats, self._layout.buffer_words, known, values)
        if outcome == _BUSY:
            raise RowBusy("the dense weights are being written")
        if outcome == _DAMAGED:
            raise TableDamaged("the dense weights are not what was written")
        if cached is not None and outcome == _UNCHANGED:
            return cached[1]
        values.flags.writeable = False
        view = DenseView((int(known[2]), int(known[3])), self._layout.split(values))
        self._cached = (known, view)
        return view


def _check(path: Path, words: Int64s, layout: _Layout) -> None:
    if words.size < _HEADER_WORDS or words[_MAGIC_AT] != _MAGIC:
        raise CorruptArtifact(f"{path}: no dense weights, or not of this machine's byte order")
    if words[_FORMAT_AT] != _FORMAT_VERSION:
        raise CorruptArtifact(f"{path}: format version {words[_FORMAT_AT]}, this program reads {_FORMAT_VERSION}")
    if words.size != layout.num_words or words[_LAYOUT_CRC_AT] != layout.crc:
        raise CorruptArtifact(f"{path}: {words.size} words do not fit the layout: truncated or damaged")
