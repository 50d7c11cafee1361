"""The control block of an edition, a small mapped file: what the tables contain, and whether they are whole.

It counts deltas begun and deltas done. Equal: the edition is whole. Different: one is being applied, or its writer died half-way; each row
is still whole then, but the next writer does not go on from there.

A lock word makes a look at the block whole. Knows nothing of rows, of the folder around the file, and nothing of Kafka.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.ranker.atomics import fence_acquire, fence_release, kernel, load_acquire, load_relaxed, store_release
from services.common.ranker.tables.checks import TableDamaged, sum_of
from services.common.ranker.tables.index import Int64s
from services.common.ranker.tables.words import create_words, map_words

CONTROL_FILE = "control"
# Changes with every start of the system: after a power cut the file may hold pages of different ages.
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

_MAGIC = 0x4C52544E4F434D54  # "TMCONTRL", little-endian
_FORMAT_VERSION = 2
_NUM_WORDS = 512
_MAGIC_AT, _FORMAT_AT, _STATE_AT, _LOCK_AT = range(4)
# Many bits apart: a reader asks whether the state is _LIVE, so damage makes it look for another edition.
_LIVE, _RETIRED = 0x4556494C45564921, 2
# The block under the lock.
_BLOCK_AT, _BLOCK_WORDS = 8, 120
_BEGUN, _DONE, _BEGUN_EPOCH, _BEGUN_SEQ, _EPOCH, _SEQ, _WATERMARK_MS, _NEXT_OFFSET, _BASE_ID_AT = range(9)
_TEXT_WORDS = 32
_MAX_TEXT_BYTES = 8 * _TEXT_WORDS - 8
# The last word of the block is its checksum.
_BLOCK_SUM_AT = _BLOCK_WORDS - 1
_SCHEMA_AT, _LINEAGE_AT, _BOOT_AT = 128, 160, 192
# Behind the texts, of which it is the checksum.
_TEXTS_SUM_AT = 224
_MAX_LOOKS = 1000
_PATIENCE_S = 1.0
_PAUSE_S = 50e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a replica contains."""

    epoch: int
    seq: int
    """The last delta applied; of the base when none is."""
    watermark_ms: int
    """Every feedback accepted up to here is contained. Unix milliseconds."""
    base_id: str
    """The base that the epoch continues from."""
    delta_offset: int = 0
    """Next offset in ranker.deltas.v1."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One consistent look at the control block.

    Attributes:
        num_begun: deltas whose application has begun.
        num_done: deltas applied; num_begun or one less.
        begun_epoch: epoch of the last one begun.
        begun_seq: its seq.
        applied: what is applied completely.
    """

    num_begun: int
    num_done: int
    begun_epoch: int
    begun_seq: int
    applied: Applied


@kernel
def _look(words: Int64s, out: Int64s) -> bool:
    """Copy the locked block to `out`; return whether the copy is whole."""
    lock = load_acquire(words, _LOCK_AT)
    if lock & 1:
        return False
    for i in range(_BLOCK_WORDS):
        out[i] = words[_BLOCK_AT + i]
    fence_acquire()
    return bool(load_relaxed(words, _LOCK_AT) == lock)


@kernel
def _look_repeatedly(words: Int64s, out: Int64s) -> bool:
    looks = 0
    while looks < _MAX_LOOKS and not _look(words, out):
        looks += 1
    return looks < _MAX_LOOKS


@kernel
def _change(words: Int64s, block: Int64s) -> None:
    """Replace the locked block. What was written before is seen by whoever sees this, and what is written later is not seen without it."""
    # A writer that died in here left the lock odd; its successor goes on from the even number above.
    lock = words[_LOCK_AT] | 1
    store_release(words, _LOCK_AT, lock)
    fence_release()
    block[_BLOCK_SUM_AT] = sum_of(block, 0, _BLOCK_SUM_AT)
    for i in range(_BLOCK_WORDS):
        words[_BLOCK_AT + i] = block[i]
    store_release(words, _LOCK_AT, lock + 1)
    fence_release()


@kernel
def _state(words: Int64s) -> int:
    return int(load_acquire(words, _STATE_AT))


@kernel
def _set_state(words: Int64s, state: int) -> None:
    store_release(words, _STATE_AT, state)


class ControlBlock:
    """The control block of one edition, mapped."""

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        """Map it.

        Raises:
            FileNotFoundError: the edition is not there, or has been removed.
            CorruptArtifact: the file is no control block, or of another format.
        """
        path = folder / CONTROL_FILE
        self._words = map_words(path, writable=writable)
        if self._words.size != _NUM_WORDS or self._words[_MAGIC_AT] != _MAGIC:
            raise CorruptArtifact(f"{path}: no control block, or not of this machine's byte order")
        if self._words[_FORMAT_AT] != _FORMAT_VERSION:
            raise CorruptArtifact(f"{path}: format version {self._words[_FORMAT_AT]}, this program reads {_FORMAT_VERSION}")
        if self._words[_TEXTS_SUM_AT] != sum_of(self._words, _SCHEMA_AT, _TEXTS_SUM_AT - _SCHEMA_AT):
            raise TableDamaged(f"{path}: schema, lineage or boot id changed by itself")
        self._path = path
        self._block = np.zeros(_BLOCK_WORDS, np.int64)
        self.schema_hash = _get_text(self._words, _SCHEMA_AT)
        self.lineage_id = _get_text(self._words, _LINEAGE_AT)
        self.boot_id = _get_text(self._words, _BOOT_AT)

    @classmethod
    def create(cls, folder: Path, *, schema_hash: str, lineage_id: str, applied: Applied) -> ControlBlock:
        """Make the block of a new edition that contains `applied`."""
        words = create_words(folder / CONTROL_FILE, _NUM_WORDS)
        words[_FORMAT_AT] = _FORMAT_VERSION
        _set_text(words, _SCHEMA_AT, schema_hash)
        _set_text(words, _LINEAGE_AT, lineage_id)
        _set_text(words, _BOOT_AT, boot_id())
        words[_TEXTS_SUM_AT] = sum_of(words, _SCHEMA_AT, _TEXTS_SUM_AT - _SCHEMA_AT)
        words[_STATE_AT] = _LIVE
        words[_MAGIC_AT] = _MAGIC
        control = cls(folder, writable=True)
        control.begin(applied.epoch, applied.seq)
        control.finish(applied)
        return control

    def begin(self, epoch: int, seq: int) -> None:
        """Say that the delta epoch.seq is being applied from now on."""
        self._block[_BEGUN] = self._block[_DONE] + 1
        self._block[_BEGUN_EPOCH], self._block[_BEGUN_SEQ] = epoch, seq
        _change(self._words, self._block)

    def finish(self, applied: Applied) -> None:
        """Say that what was begun is done, and what the edition contains now."""
        block = self._block
        block[_DONE] = block[_BEGUN]
        block[_EPOCH], block[_SEQ] = applied.epoch, applied.seq
        block[_WATERMARK_MS], block[_NEXT_OFFSET] = applied.watermark_ms, applied.delta_offset
        _set_text(block, _BASE_ID_AT, applied.base_id)
        _change(self._words, block)

    def resume(self) -> None:
        """Go on counting where the mapped block is; for a writer that opens a whole edition."""
        if not _look_repeatedly(self._words, self._block):
            raise CorruptArtifact(f"{self._path}: its writer died while changing it")
        self.check()

    def check(self) -> None:
        """For the writer, between two changes. Raises TableDamaged if anything in the block changed by itself."""
        block = np.empty(_BLOCK_WORDS, np.int64)
        whole = _look_repeatedly(self._words, block) and np.array_equal(block, self._block)
        texts_whole = self._words[_TEXTS_SUM_AT] == sum_of(self._words, _SCHEMA_AT, _TEXTS_SUM_AT - _SCHEMA_AT)
        head_whole = self._words[_MAGIC_AT] == _MAGIC and self._words[_FORMAT_AT] == _FORMAT_VERSION
        if not whole or not texts_whole or not head_whole or block[_BLOCK_SUM_AT] != sum_of(block, 0, _BLOCK_SUM_AT) or self.is_retired:
            raise TableDamaged(f"{self._path}: the control block changed by itself")

    @property
    def is_retired(self) -> bool:
        """True when another edition is current."""
        return bool(_state(self._words) != _LIVE)

    def checked_progress(self) -> Progress:
        """As `progress`. Raises TableDamaged if the block changed by itself: what costs a little, and is done when an edition is opened."""
        block = np.empty(_BLOCK_WORDS, np.int64)
        if _look_repeatedly(self._words, block) and block[_BLOCK_SUM_AT] != sum_of(block, 0, _BLOCK_SUM_AT):
            raise TableDamaged(f"{self._path}: the control block changed by itself")
        return self.progress()

    def progress(self) -> Progress:
        """Return a consistent look.

        Raises:
            Unavailable: the writer stayed in the block for a second: it died there; its successor makes a new edition.
        """
        block = np.empty(_BLOCK_WORDS, np.int64)
        give_up_at = 0.0
        while not _look_repeatedly(self._words, block):
            give_up_at = give_up_at or time.monotonic() + _PATIENCE_S
            if time.monotonic() > give_up_at:
                raise Unavailable(f"{self._path}: its writer died while changing it; waiting for the next writer")
            time.sleep(_PAUSE_S)
        numbers = block[:_BASE_ID_AT].tolist()
        applied = Applied(
            epoch=numbers[_EPOCH],
            seq=numbers[_SEQ],
            watermark_ms=numbers[_WATERMARK_MS],
            base_id=_get_text(block, _BASE_ID_AT),
            delta_offset=numbers[_NEXT_OFFSET],
        )
        return Progress(numbers[_BEGUN], numbers[_DONE], numbers[_BEGUN_EPOCH], numbers[_BEGUN_SEQ], applied)


def retire(folder: Path) -> None:
    """Tell the readers of an edition, damaged or not, to open the current one. An edition without a control block has no readers."""
    try:
        words = map_words(folder / CONTROL_FILE, writable=True)
    except (FileNotFoundError, CorruptArtifact):
        return
    if words.size > _STATE_AT:
        _set_state(words, _RETIRED)


def _set_text(words: Int64s, at: int, text: str) -> None:
    encoded = text.encode()
    if len(encoded) > _MAX_TEXT_BYTES:
        raise ValueError(f"{text[:40]!r}... is longer than {_MAX_TEXT_BYTES} bytes")
    words[at] = len(encoded)
    words[at + 1 : at + _TEXT_WORDS].view(np.uint8)[: len(encoded)] = np.frombuffer(encoded, np.uint8)


def _get_text(words: Int64s, at: int) -> str:
    length = min(int(words[at]), _MAX_TEXT_BYTES)
    return words[at + 1 : at + _TEXT_WORDS].view(np.uint8)[:length].tobytes().decode(errors="replace")


def boot_id() -> str:
    """Return an id of this run of the system, "" where there is none; then no edition outlives its writer."""
    return _BOOT_ID_FILE.read_text().strip() if _BOOT_ID_FILE.exists() else ""
