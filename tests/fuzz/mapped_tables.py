"""Bits that change by themselves in a replica's mapped tables: under a writer and a reader that have them open, and before they open them.

What may follow: the damage is found, or it does no harm, which means that every id reads its row, and an absent one the default row.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.delta import DeltaBody, TableDelta
from services.common.ranker.tables import control_block, reader
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.edition import current_edition
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.common.ranker.tables.writer import ModelWriter, TableImage
from tests.fuzzing import Damage

DIM = 3
SCHEMA = "schema"
EXTREMES = (-(2**63), -1, 0, 1, 2**63 - 1)
ABSENT = np.array([3, 77, -99, 2**40], np.int64)
Rows = dict[str, dict[int, float]]


class Model:
    """A small model in memory files, what it must read, and a copy of its bytes to go back to."""

    def __init__(self, directory: Path) -> None:
        """Build it, and apply a few deltas: there are deleted cells, free rows and reused ones."""
        self.directory = directory
        writer = ModelWriter(directory, SCHEMA)
        rows: Rows = {"user": dict.fromkeys((*EXTREMES, *range(100, 400)), 0.25), "item": {7: 7.0}}
        writer.build({name: _image(table) for name, table in rows.items()}, _weights(0.0), _applied(-1), lineage_id="l1")
        for seq in range(4):
            gone = set(range(100 + 40 * seq, 130 + 40 * seq))
            new = dict.fromkeys((*range(500 + 20 * seq, 520 + 20 * seq), *range(300, 310), EXTREMES[seq]), 1.0 + seq)
            writer.apply(_delta(new, gone, _weights(float(seq))), _applied(seq))
            rows["user"] = {id_: value for id_, value in (rows["user"] | new).items() if id_ not in gone}
        writer.close()
        self.rows, self.seq, self.weight = rows, 3, 3.0
        folder = current_edition(directory)
        assert folder is not None
        self.folder = folder
        files = sorted(path for path in folder.iterdir())
        self.sound = {path: path.read_bytes() for path in files}
        self.pointer = directory / "CURRENT"
        self.sound_pointer = self.pointer.read_bytes()
        self.mapped = {path: np.memmap(path, np.uint8, "r+") for path in files if path.suffix != ".json"}

    def restore(self, changed: Path | None) -> None:
        """Bring the bytes of a file back, or of all."""
        for path in self.sound if changed is None else [changed] if changed in self.sound else []:
            if path in self.mapped:
                self.mapped[path][:] = np.frombuffer(self.sound[path], np.uint8)
            else:
                path.write_bytes(self.sound[path])
        self.pointer.write_bytes(self.sound_pointer)

    def flip(self, damage: Damage) -> Path:
        """Flip one to three bits of one file; return its path. Half of the flips hit words that are in use."""
        choice = damage.random.random()
        if choice < 0.01:
            self.pointer.write_bytes(_flipped(damage, self.sound_pointer))
            return self.pointer
        path = damage.random.choice(list(self.sound))
        if path not in self.mapped:
            path.write_bytes(_flipped(damage, self.sound[path]))
            return path
        words = self.mapped[path].view(np.uint64)
        used = np.flatnonzero(words) if damage.random.random() < 0.5 else np.arange(words.size)
        for _ in range(damage.random.choice((1, 1, 1, 2, 3))):
            words[damage.random.choice(used)] ^= np.uint64(1 << damage.random.randrange(64))
        return path

    def assert_reads_right(self, subject: ModelReader, rows: Rows, seq: int, weight: float) -> None:
        """Every id reads its row, an absent one the default row; dense weights and versions are those that were written."""
        probe = {name: np.concatenate([np.array(list(table), np.int64), ABSENT]) for name, table in rows.items()}
        view = subject.read(probe)
        for name, table in rows.items():
            expected = np.array([*table.values(), *[0.5] * ABSENT.size], np.float32)
            np.testing.assert_array_equal(view.rows[name], np.repeat(expected[:, None], DIM, axis=1))
            assert view.found[name].tolist() == [True] * len(table) + [False] * ABSENT.size
            assert subject.iter_rows(name)[0].tolist() == sorted(table)
        assert (view.epoch, view.seq_min, view.seq_max, view.watermark_ms) == (1, seq, seq, 100 + seq)
        assert subject.status() == _applied(seq)
        for tensor in subject.dense().tensors.values():
            assert (tensor == weight).all()


@contextmanager
def small_model() -> Iterator[Model]:
    """A model in memory. Readers do not wait for a writer that is not there. Nothing is logged: kept records keep mapped files."""
    directory = Path(f"/dev/shm/tunemesh-fuzz-{os.getpid()}")
    patience = (reader._PATIENCE_S, control_block._PATIENCE_S)
    reader._PATIENCE_S = control_block._PATIENCE_S = 0.0
    logging.disable(logging.CRITICAL)
    try:
        yield Model(directory)
    finally:
        logging.disable(logging.NOTSET)
        reader._PATIENCE_S, control_block._PATIENCE_S = patience
        shutil.rmtree(directory)


def fuzz_opening(model: Model, inputs: int, seed: int) -> Counter[str]:
    """Damage, then open: a writer goes on from what is sound only; a reader serves nothing wrong."""
    outcomes: Counter[str] = Counter()
    for number in range(inputs):
        damage = Damage(seed * 1_000_003 + number)
        changed = model.flip(damage)
        what = f"input {number} of seed {seed}, in {changed.name}"
        try:
            outcomes[_open_reader(model)] += 1
            outcomes[_open_writer(model)] += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        model.folder.mkdir(exist_ok=True)
        if not all(path.exists() for path in model.sound):
            _make_again(model)
        model.restore(None)  # a writer that finds damage turns readers away, in the control block
    return outcomes


def _open_reader(model: Model) -> str:
    try:
        subject = ModelReader(model.directory, SCHEMA)
        subject.dense()
    except (TableNotReady, CorruptArtifact):
        return "reader refused"
    model.assert_reads_right(subject, model.rows, model.seq, model.weight)
    return "reader opened"


def _open_writer(model: Model) -> str:
    writer = ModelWriter(model.directory, SCHEMA)
    try:
        if writer.applied is None:
            return "writer will build"
        assert writer.applied == _applied(model.seq) and writer.lineage_id == "l1"
        model.assert_reads_right(ModelReader(model.directory, SCHEMA), model.rows, model.seq, model.weight)
        writer.check(1.0)
        return "writer goes on"
    finally:
        writer.close()


def _make_again(model: Model) -> None:
    """The writer deleted the folder, as CURRENT named another one; mapped files must be mapped again."""
    for path, raw in model.sound.items():
        path.write_bytes(raw)
    model.mapped = {path: np.memmap(path, np.uint8, "r+") for path in model.sound if path.suffix != ".json"}


def fuzz_running(model: Model, inputs: int, seed: int) -> Counter[str]:
    """Damage under a writer and a reader that go on: reads, perhaps a delta, then one whole check."""
    outcomes: Counter[str] = Counter()
    writer, subject = _start(model)
    for number in range(inputs):
        damage = Damage(seed * 1_000_003 + number)
        changed = model.flip(damage)
        what = f"input {number} of seed {seed}, in {changed.name}"
        try:
            outcome = _go_on(model, writer, subject, damage)
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        outcomes[outcome] += 1
        if outcome == "harmless":
            model.restore(changed)
            continue
        writer.close()
        model.restore(None)
        writer, subject = _start(model)
    writer.close()
    return outcomes


def _start(model: Model) -> tuple[ModelWriter, ModelReader]:
    writer = ModelWriter(model.directory, SCHEMA)
    assert writer.applied == _applied(model.seq), "the sound model is gone on from"
    return writer, ModelReader(model.directory, SCHEMA)


def _go_on(model: Model, writer: ModelWriter, subject: ModelReader, damage: Damage) -> str:
    """Return "found", "found on write", "harmless", or "harmless and written over"."""
    probe = np.array([*model.rows["user"], *ABSENT.tolist()], np.int64)
    try:
        # Whatever it reads: neither an error of another kind, nor a loop without an end.
        subject.read({"user": probe})
        subject.dense()
    except TableNotReady:
        pass
    writes = damage.random.random() < 0.3
    rows, seq, weight = model.rows, model.seq, model.weight
    try:
        if writes:
            rows, seq, weight = _with_delta(model, writer, damage)
        writer.check(1.0)
    except TableDamaged:
        assert writer.applied is None
        try:
            subject.read({"user": probe})
        except TableNotReady:
            return "found"
        raise AssertionError("damage was found, and readers are not turned away") from None
    model.assert_reads_right(ModelReader(model.directory, SCHEMA), rows, seq, weight)
    model.assert_reads_right(subject, rows, seq, weight)
    return "harmless and written over" if writes else "harmless"


def _with_delta(model: Model, writer: ModelWriter, damage: Damage) -> tuple[Rows, int, float]:
    known = list(model.rows["user"])
    gone = set(damage.random.sample(known, 20))
    new = dict.fromkeys([*damage.random.sample(known, 20), *range(10_000, 10_020)], 9.0)
    gone -= new.keys()
    weight = 8.0 if damage.random.random() < 0.5 else model.weight
    writer.apply(_delta(new, gone, None if weight == model.weight else _weights(weight)), _applied(model.seq + 1))
    after = {id_: value for id_, value in (model.rows["user"] | new).items() if id_ not in gone}
    return {**model.rows, "user": after}, model.seq + 1, weight


def _flipped(damage: Damage, raw: bytes) -> bytes:
    changed = bytearray(raw)
    changed[damage.random.randrange(len(changed))] ^= 1 << damage.random.randrange(8)
    return bytes(changed)


def _image(rows: dict[int, float]) -> TableImage:
    ids = np.array(sorted(rows), np.int64)
    values = np.repeat(np.array([rows[id_] for id_ in ids.tolist()], np.float32)[:, None], DIM, axis=1)
    return TableImage(ids, values.reshape(ids.size, DIM), np.full(DIM, 0.5, np.float32))


def _delta(rows: dict[int, float], gone: set[int], dense: dict[str, np.ndarray] | None) -> DeltaBody:
    image = _image(rows)
    return DeltaBody({"user": TableDelta(image.ids, image.rows, np.array(sorted(gone), np.int64))}, dense)


def _applied(seq: int) -> Applied:
    return Applied(epoch=1, seq=seq, watermark_ms=100 + seq, base_id="base-1", delta_offset=seq + 1)


def _weights(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.full((), value, np.float32)}
