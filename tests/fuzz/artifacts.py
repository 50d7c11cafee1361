"""Damaged checkpoints and bases, handed to the readers of the trainer and of the updater.

An input is one artifact in which one file is damaged. In most of them the checksums are made right again, as a broken writer would leave
them, so that the damage reaches the parsers behind the checksum.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import crc32c
import fsspec
import numpy as np
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, BasePointer

from services.common.platform.errors import ConfigurationError, CorruptArtifact, NotFound
from services.recommender.updater.base_artifact import load_base
from services.trainer.bases import BaseStore, base_name, read_initial_base
from services.trainer.checkpoints import Checkpoint, CheckpointStore, Counters, Retention, checkpoint_name
from services.trainer.dedup import DedupWindow
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut
from services.trainer.trainer_table import Eviction, TrainerTable
from tests.fuzzing import Damage

_SCHEMA, _LINEAGE = "s", "L"
_MANIFEST = "manifest.json"


def small_checkpoint() -> Checkpoint:
    """A checkpoint of a few rows, with something in every array."""
    table = _table()
    ids = np.array([-(2**63), -7, 0, 5, 2**63 - 1], np.int64)
    table.count(ids)
    table.slots_for_update(ids)
    table.evict(100)
    table.slots_for_update(ids[2:])
    table.count(ids)
    position = Position((PartitionPosition(10, 3, 300), PartitionPosition(20, 4, 250)))
    cut = Cut(name=checkpoint_name(2, 1), lineage_id=_LINEAGE, epoch=2, base_id=base_name(2, 1), position=position, delta_offset=17)
    window = DedupWindow(10, 10)
    window.add(np.array([1, 2**64 - 1], np.uint64), partition=1, exposure_offset=7, exposures_done=3)
    arrays = {"dense/w": np.arange(6, dtype=np.float32).reshape(2, 3), **table.state_arrays()}
    return Checkpoint(cut=cut, seq=8, within_seq=9, counters=Counters(samples_trained=100), arrays=arrays, dedup=window.to_arrays())


def _table() -> TrainerTable:
    return TrainerTable("user", 4, eviction=Eviction(steps_to_live=15))


class DamagedArtifact:
    """One artifact in memory, of which `damage` changes one file; `repair` brings the sound one back."""

    def __init__(self, url: str) -> None:
        """Remember the files of the sound artifact at a memory:// URL."""
        self._files, self.root = fsspec.url_to_fs(url)
        self._sound: dict[str, bytes] = {path: self._files.cat_file(path) for path in self._files.find(self.root)}
        self._changed: list[str] = []

    def damage(self, damage: Damage) -> None:
        """Change one file; as a rule its entry in the manifest is right again afterwards."""
        path = damage.random.choice(list(self._sound))
        manifest_path = f"{self.root}/{_MANIFEST}"
        if path == manifest_path or damage.random.random() < 0.3:
            self._write(manifest_path, self._damaged_manifest(damage, self._sound[manifest_path]))
            return
        arrays = [raw for other, raw in self._sound.items() if other.endswith(".npy")]
        raw = damage.of_bytes([self._sound[path]] if damage.random.random() < 0.8 else arrays)
        self._write(path, raw if damage.random.random() < 0.5 else _reshaped(damage, self._sound[path]))
        if damage.random.random() < 0.9:
            self._write(manifest_path, self._with_stamp(path, self._files.cat_file(path)))

    def repair(self) -> None:
        """Bring every changed file back."""
        for path in self._changed:
            self._files.pipe_file(path, self._sound[path])
        self._changed.clear()

    def manifest_crc32c(self) -> int:
        """Of the manifest as it is now."""
        return crc32c.crc32c(self._files.cat_file(f"{self.root}/{_MANIFEST}"))

    def _write(self, path: str, raw: bytes) -> None:
        self._changed.append(path)
        self._files.pipe_file(path, raw)

    def _with_stamp(self, path: str, raw: bytes) -> bytes:
        manifest = json.loads(self._sound[f"{self.root}/{_MANIFEST}"])
        manifest["files"][path.removeprefix(f"{self.root}/")] = {"size_bytes": len(raw), "crc32c": crc32c.crc32c(raw)}
        return json.dumps(manifest).encode()

    @staticmethod
    def _damaged_manifest(damage: Damage, raw: bytes) -> bytes:
        if damage.random.random() < 0.3:
            return damage.of_bytes([raw])
        manifest = json.loads(raw)
        part = damage.random.choice(["", "", "metadata", "files"])
        if part:
            manifest[part] = damage.of_json(manifest[part])
        else:
            manifest = damage.of_json(manifest)
        return json.dumps(manifest).encode()


def _reshaped(damage: Damage, raw: bytes) -> bytes:
    """A sound file of another type, shape or content."""
    array = np.lib.format.read_array(io.BytesIO(raw))
    dtype = damage.random.choice([array.dtype, np.dtype(np.int64), np.dtype(np.float64), np.dtype("U3"), np.dtype("M8[s]"), np.dtype("?")])
    shape = damage.random.choice(
        [array.shape, (), (0,), (array.size,), (array.size, 1), (*array.shape, 1), (1, *array.shape), (3,), (2, 2)]
    )
    values = np.resize(array, max(1, math.prod(shape)))[: math.prod(shape)]
    if np.issubdtype(values.dtype, np.number) and values.size and damage.random.random() < 0.5:
        with np.errstate(all="ignore"):
            odd = np.array([damage.random.choice([np.nan, np.inf, -1.0, 1e300, 0.0])]).astype(values.dtype)
        values[damage.random.randrange(values.size)] = odd[0]
    buffer = io.BytesIO()
    with np.errstate(all="ignore"):
        np.lib.format.write_array(buffer, values.astype("U3").astype(dtype) if dtype.kind == "U" else _as(values, dtype).reshape(shape))
    return buffer.getvalue()


def _as(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return values.view(dtype) if values.itemsize == dtype.itemsize else values.astype(np.int64 if dtype.kind == "M" else dtype)


def fuzz(
    artifact: DamagedArtifact, read: Callable[[], object], allowed: tuple[type[Exception], ...], inputs: int, seed: int
) -> Counter[str]:
    """Read so many damaged inputs; return how often each outcome came, by the name of its error, or "read".

    Raises whatever is not `allowed`, with the number of the input.
    """
    outcomes: Counter[str] = Counter()
    # A line about every input would take more memory than the inputs.
    logging.disable(logging.CRITICAL)
    try:
        for number in range(inputs):
            artifact.damage(Damage(seed * 1_000_003 + number))
            try:
                read()
            except allowed as error:
                outcomes[type(error).__name__] += 1
            except Exception as error:
                raise AssertionError(f"input {number} of seed {seed} made {type(error).__name__}: {error}") from error
            else:
                outcomes["read"] += 1
            artifact.repair()
    finally:
        logging.disable(logging.NOTSET)
    return outcomes


def fuzz_checkpoints(inputs: int, seed: int) -> Counter[str]:
    """Damaged checkpoints, read as the trainer starts from them: the store, then the tables."""
    url = f"memory://fuzz-checkpoints-{seed}"
    store = CheckpointStore(
        url, model="ranker", schema_hash=_SCHEMA, retention=Retention(keep=2, history_interval_ms=1_000, history_keep=0)
    )
    artifact = DamagedArtifact(store.write(small_checkpoint(), now_ms=5))

    def read() -> None:
        checkpoint = store.newest()
        assert checkpoint is not None, "a checkpoint is there and must be read or refused"
        _table().load_state_arrays(checkpoint.arrays)

    return fuzz(artifact, read, (ConfigurationError, CorruptArtifact, NotFound), inputs, seed)


def fuzz_bases(inputs: int, seed: int) -> Counter[str]:
    """Damaged bases, read as a replica loads them, and as a trainer begins with one."""
    store = BaseStore(f"memory://fuzz-bases-{seed}", model="ranker", schema_hash=_SCHEMA, row_dtype=ROW_DTYPE_FP32, keep=2)
    written = store.write(small_checkpoint(), epoch=2, seq=8, now_ms=5)
    artifact = DamagedArtifact(written.url)

    def read() -> None:
        pointer = BasePointer(
            model="ranker", base_id=base_name(2, 1), uri=written.url, schema_hash=_SCHEMA, lineage_id=_LINEAGE, epoch=2, seq=8,
            delta_offsets=[17], manifest_crc32c=artifact.manifest_crc32c(),
        )  # fmt: skip
        _assert_can_be_built(load_base(pointer).tables)
        read_initial_base(written.url, schema_hash=_SCHEMA, variable="TUNEMESH_TRAINER_INITIAL_BASE")

    return fuzz(artifact, read, (ConfigurationError, CorruptArtifact, NotFound), inputs, seed)


def _assert_can_be_built(tables: Mapping[str, Any]) -> None:
    """What the writer of mapped tables counts on."""
    for image in tables.values():
        assert image.ids.dtype == np.int64 and np.unique(image.ids).size == image.ids.size
        assert image.rows.dtype == np.float32 and image.rows.shape == (image.ids.size, image.default_row.size)
        assert image.default_row.dtype == np.float32 and image.default_row.size > 0
        assert np.isfinite(image.rows).all() and np.isfinite(image.default_row).all()
