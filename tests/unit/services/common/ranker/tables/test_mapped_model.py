"""ModelWriter and ModelReader in one process: what is applied is what is read, and what cannot be trusted is built again."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.platform.errors import ConfigurationError, CorruptArtifact, Unavailable
from services.common.ranker.delta import DeltaBody, TableDelta
from services.common.ranker.tables.checks import TableDamaged
from services.common.ranker.tables.control_block import Applied, ControlBlock
from services.common.ranker.tables.edition import current_edition
from services.common.ranker.tables.mapped import MappedTableReader, MappedTableWriter
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.common.ranker.tables.writer import ModelWriter, TableImage
from tests.fuzz.mapped_tables import fuzz_opening, fuzz_running, small_model

INT64 = np.iinfo(np.int64)
EXTREMES = [INT64.min, -1, 0, 1, INT64.max]
KEYS = st.sampled_from(EXTREMES) | st.integers(-10, 10) | st.integers(INT64.min, INT64.max)
DIM = 3
DEFAULT = 0.5


def int64s(values) -> np.ndarray:
    return np.array(sorted(values), np.int64)


def image(rows: dict[int, float]) -> TableImage:
    ids = int64s(rows)
    values = np.array([[rows[id_]] * DIM for id_ in ids.tolist()], np.float32).reshape(ids.size, DIM)
    return TableImage(ids, values, np.full(DIM, DEFAULT, np.float32))


def delta(rows: dict[int, float], gone=(), table: str = "user", dense=None) -> DeltaBody:
    return DeltaBody({table: TableDelta(image(rows).ids, image(rows).rows, int64s(gone))}, dense)


def applied(seq: int, epoch: int = 1, **fields) -> Applied:
    return Applied(**{"epoch": epoch, "seq": seq, "watermark_ms": 100 + seq, "base_id": "base-1", "delta_offset": seq + 1} | fields)


def weights(value: float) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.full((), value, np.float32)}


def built(directory, rows: dict[int, float] | None = None, seq: int = -1) -> ModelWriter:
    writer = ModelWriter(directory, "schema")
    writer.build({"user": image(rows or {1: 1.0}), "item": image({7: 7.0})}, weights(0.0), applied(seq), lineage_id="l1")
    return writer


class ModelAgainstDict(RuleBasedStateMachine):
    """Any sequence of deltas, restarts of the writer and rebuilds reads as the same sequence on a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = f"/dev/shm/tunemesh-test-{os.getpid()}-{id(self)}"
        self.rows: dict[int, float] = {1: 1.0}
        self.seq = -1
        self.writer = built(self.directory, self.rows)
        self.reader = ModelReader(self.directory, "schema")

    @rule(changed=st.dictionaries(KEYS, st.floats(-1, 1, width=32), max_size=20), gone=st.sets(KEYS, max_size=20))
    def a_delta_is_applied(self, changed: dict[int, float], gone: set[int]) -> None:
        self.seq += 1
        gone -= changed.keys()
        for _ in range(2):
            # The second time changes nothing.
            self.writer.apply(delta(changed, gone), applied(self.seq))
        self.rows = {id_: value for id_, value in (self.rows | changed).items() if id_ not in gone}

    @rule(start=st.integers(-(10**6), 10**6))
    def many_rows_arrive(self, start: int) -> None:
        self.seq += 1
        new = dict.fromkeys(range(start, start + 700), 0.25)
        self.writer.apply(delta(new), applied(self.seq))
        self.rows |= new

    @rule()
    def the_writer_starts_again(self) -> None:
        self.writer.close()
        self.writer = ModelWriter(self.directory, "schema")
        assert self.writer.applied == applied(self.seq)
        assert self.writer.lineage_id == "l1"

    @rule()
    def a_base_is_loaded(self) -> None:
        self.writer.build({"user": image(self.rows), "item": image({7: 7.0})}, weights(0.0), applied(self.seq), lineage_id="l1")

    @invariant()
    def readers_see_what_was_applied(self) -> None:
        probe = int64s({*self.rows, *EXTREMES, 3})
        view = self.reader.read({"user": probe, "item": int64s([7, 8])})
        assert (view.epoch, view.seq_min, view.seq_max, view.watermark_ms) == (1, self.seq, self.seq, 100 + self.seq)
        expected = np.array([self.rows.get(id_, DEFAULT) for id_ in probe.tolist()], np.float32)
        np.testing.assert_array_equal(view.rows["user"], np.repeat(expected[:, None], DIM, axis=1))
        assert view.found["user"].tolist() == [id_ in self.rows for id_ in probe.tolist()]
        assert view.found["item"].tolist() == [True, False]
        assert self.writer.num_rows() == {"user": len(self.rows), "item": 1}
        assert self.reader.iter_rows("user")[0].tolist() == sorted(self.rows)
        assert self.reader.status() == applied(self.seq)

    def teardown(self) -> None:
        self.writer.close()
        shutil.rmtree(self.directory)


TestModelAgainstDict = ModelAgainstDict.TestCase
TestModelAgainstDict.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_dense_weights_are_the_same_object_until_they_change(tmp_path):
    writer = built(tmp_path)
    reader = ModelReader(tmp_path, "schema")
    first = reader.dense()
    writer.apply(delta({1: 2.0}), applied(0))
    assert reader.dense() is first
    writer.apply(delta({}, dense=weights(1.5)), applied(1))
    second = reader.dense()
    assert (first.version, second.version) == ((1, -1), (1, 1))
    for name, expected in weights(1.5).items():
        np.testing.assert_array_equal(second.tensors[name], expected, strict=True)
    np.testing.assert_array_equal(first.tensors["a"], np.zeros((2, 3)))


def test_dense_weights_keep_their_version_when_the_tables_grow(tmp_path):
    writer = built(tmp_path)
    writer.apply(delta({}, dense=weights(1.5)), applied(0))
    before = current_edition(tmp_path)
    writer.apply(delta(dict.fromkeys(range(5000), 1.0)), applied(1))
    assert current_edition(tmp_path) != before
    view = ModelReader(tmp_path, "schema").dense()
    assert view.version == (1, 0)
    assert view.tensors["b"] == 1.5


def test_nothing_there_yet_is_said(tmp_path):
    with pytest.raises(TableNotReady, match="no base has been applied"):
        ModelReader(tmp_path / "absent", "schema")


def test_readers_move_to_the_new_edition_and_the_old_one_is_deleted(tmp_path):
    writer = built(tmp_path)
    reader = ModelReader(tmp_path, "schema")
    writer.build({"user": image({2: 9.0}), "item": image({})}, weights(0.0), applied(5, epoch=2, base_id="base-2"), lineage_id="l1")
    view = reader.read({"user": int64s([1, 2])})
    assert (view.epoch, view.found["user"].tolist()) == (2, [False, True])
    assert reader.status().base_id == "base-2"
    assert len(list(tmp_path.glob("edition-*"))) == 1


def test_a_new_epoch_in_place_counts_from_its_first_delta(tmp_path):
    writer = built(tmp_path, seq=9)
    reader = ModelReader(tmp_path, "schema")
    writer.apply(delta({1: 2.0}), applied(0, epoch=2))
    view = reader.read({"user": int64s([1])})
    assert (view.epoch, view.seq_min, view.seq_max) == (2, 0, 0)


def test_a_reader_of_another_schema_is_refused(tmp_path):
    built(tmp_path)
    with pytest.raises(CorruptArtifact, match="schema 'schema', this program has 'other'"):
        ModelReader(tmp_path, "other")


def test_a_writer_of_another_schema_builds_again(tmp_path):
    built(tmp_path).close()
    assert ModelWriter(tmp_path, "other").applied is None


def test_tables_from_before_the_systems_last_start_are_not_read_and_built_again(tmp_path, monkeypatch):
    built(tmp_path).close()
    monkeypatch.setattr("services.common.ranker.tables.reader.boot_id", lambda: "another start")
    with pytest.raises(TableNotReady, match="before the system's last start"):
        ModelReader(tmp_path, "schema")
    monkeypatch.setattr("services.common.ranker.tables.writer.boot_id", lambda: "another start")
    assert ModelWriter(tmp_path, "schema").applied is None


def test_a_second_writer_is_refused(tmp_path):
    writer = built(tmp_path)
    with pytest.raises(ConfigurationError, match=r"another process writes the tables in .*TUNEMESH_TABLES_DIR"):
        ModelWriter(tmp_path, "schema")
    writer.close()
    ModelWriter(tmp_path, "schema").close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"file cannot be written .*TUNEMESH_TABLES_DIR"):
        ModelWriter(tmp_path / "file", "schema")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (delta({1: 2.0}, table="film"), "has a table 'film'"),
        (DeltaBody({"user": TableDelta(int64s([1]), np.ones((1, DIM + 1), np.float32), int64s([]))}), "this model has dim 3"),
        (delta({1: 2.0}, dense={"a": np.zeros((2, 3), np.float32)}), "dense tensor 'b' has shape None"),
        (delta({1: 2.0}, dense=weights(1) | {"a": np.zeros((3, 2), np.float32)}), "dense tensor 'a' has shape"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, body, reason):
    writer = built(tmp_path)
    with pytest.raises(CorruptArtifact, match=reason):
        writer.apply(body, applied(0))
    assert writer.applied == applied(-1)
    np.testing.assert_array_equal(ModelReader(tmp_path, "schema").read({"user": int64s([1])}).rows["user"], np.ones((1, DIM)))


def test_a_writer_that_fails_half_way_does_not_go_on(tmp_path, monkeypatch):
    writer = built(tmp_path)
    monkeypatch.setattr(MappedTableWriter, "upsert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.apply(delta({1: 2.0}), applied(0))
    assert writer.applied is None
    writer.close()
    assert ModelWriter(tmp_path, "schema").applied is None


@pytest.mark.parametrize("file", ["control", "dense", "layout.json", "table-user"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_files_are_refused_by_readers_and_built_again_by_the_writer(tmp_path, file, damage):
    built(tmp_path).close()
    path = current_edition(tmp_path) / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 16 * 8] if damage == "cut" else b"\xff" * len(content))
    with pytest.raises(CorruptArtifact):
        ModelReader(tmp_path, "schema")
    assert ModelWriter(tmp_path, "schema").applied is None


def test_leftovers_of_a_dead_build_are_removed(tmp_path):
    built(tmp_path).close()
    (tmp_path / "edition-00000007").mkdir()
    (tmp_path / "edition-00000007" / "control").touch()
    assert ModelWriter(tmp_path, "schema").applied == applied(-1)
    assert [path.name for path in tmp_path.glob("edition-*")] == ["edition-00000001"]


def test_an_edition_under_its_former_name_is_gone_on_from_and_removed_when_the_next_one_is_there(tmp_path):
    built(tmp_path).close()
    (tmp_path / "edition-00000001").rename(tmp_path / "gen-00000001")
    (tmp_path / "CURRENT").write_text("gen-00000001")
    writer = ModelWriter(tmp_path, "schema")
    assert writer.applied == applied(-1)
    writer.build({"user": image({1: 1.0})}, {"w": np.zeros(3, np.float32)}, applied(0), lineage_id="l")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["edition-00000002"]


def test_a_damaged_pointer_is_refused(tmp_path):
    built(tmp_path).close()
    (tmp_path / "CURRENT").write_text("../elsewhere")
    with pytest.raises(CorruptArtifact, match="which is no edition"):
        ModelReader(tmp_path, "schema")
    assert ModelWriter(tmp_path, "schema").applied is None


def test_table_names_that_are_no_file_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="table names"):
        ModelWriter(tmp_path, "schema").build({"../x": image({})}, {}, applied(0), lineage_id="l")


def test_a_row_that_stays_half_written_is_reported_and_the_others_are_read(tmp_path):
    writer = MappedTableWriter.create(tmp_path / "t", edition=1, dim=DIM, capacity=10, default_row=np.zeros(DIM, np.float32))
    writer.upsert(int64s([1, 2]), np.ones((2, DIM), np.float32))
    layout = writer._layout
    layout.row_words[layout.stride * writer._find(int64s([2]))[0]] += 1
    reader = MappedTableReader(tmp_path / "t")
    rows, found = np.empty((1, DIM), np.float32), np.empty(1, np.bool_)
    reader.read(int64s([1]), rows, found)
    assert found.all() and np.all(rows == 1)
    with pytest.raises(Unavailable, match="row of id 2 is being written"):
        reader.read(int64s([2]), rows, found)


def test_a_slot_that_went_to_another_id_is_never_read_as_the_first(tmp_path):
    writer = MappedTableWriter.create(tmp_path / "t", edition=1, dim=DIM, capacity=10, default_row=np.zeros(DIM, np.float32))
    writer.upsert(int64s([1]), np.ones((1, DIM), np.float32))
    cells = writer._layout.cells.copy()
    writer.delete(int64s([1]))
    writer.upsert(int64s([2]), np.full((1, DIM), 2.0, np.float32))
    # A reader that looked into the index before the change holds the old slot.
    writer._layout.cells[:] = cells
    rows, found = np.empty((1, DIM), np.float32), np.empty(1, np.bool_)
    with pytest.raises(Unavailable):
        MappedTableReader(tmp_path / "t").read(int64s([1]), rows, found)


def test_text_that_does_not_fit_the_control_block_is_refused(tmp_path):
    with pytest.raises(ValueError, match="longer than"):
        ControlBlock.create(tmp_path, schema_hash="s" * 300, lineage_id="l", applied=applied(0))


def test_one_to_three_flipped_bits_are_found_or_do_no_harm():
    """A seeded sample of tests/fuzz/test_mapped_tables.py."""
    with small_model() as model:
        assert fuzz_running(model, 250, seed=1)["found"] > 50
        assert fuzz_opening(model, 250, seed=2)["reader refused"] > 50


def test_the_whole_edition_comes_round_when_it_is_looked_over_in_shares(tmp_path):
    writer = built(tmp_path, dict.fromkeys(range(900), 1.0))
    words = np.memmap(current_edition(tmp_path) / "table-user", np.int64, "r+")
    for damaged_at in (np.flatnonzero(words)[-1], 3):
        for _ in range(19):
            writer.check(0.05)
        words[damaged_at] ^= 4
        with pytest.raises(TableDamaged):
            for _ in range(21):
                writer.check(0.05)
        with pytest.raises(TableNotReady):
            ModelReader(tmp_path, "schema")
        writer.build({"user": image({1: 1.0}), "item": image({7: 7.0})}, weights(0.0), applied(0), lineage_id="l1")
        words = np.memmap(current_edition(tmp_path) / "table-user", np.int64, "r+")


def test_damage_is_not_copied_into_the_next_edition(tmp_path):
    writer = built(tmp_path, dict.fromkeys(range(900), 1.0))
    words = np.memmap(current_edition(tmp_path) / "table-user", np.int64, "r+")
    words[np.flatnonzero(words)[-1]] ^= 1 << 40
    with pytest.raises(TableDamaged, match="is not what was written"):
        writer.apply(delta(dict.fromkeys(range(5_000, 9_000), 1.0)), applied(0))
    assert writer.applied is None


def test_a_writer_that_finds_damage_when_it_opens_turns_readers_away(tmp_path):
    built(tmp_path).close()
    reader = ModelReader(tmp_path, "schema")
    words = np.memmap(current_edition(tmp_path) / "table-user", np.int64, "r+")
    words[np.flatnonzero(words)[-1]] ^= 1 << 17
    assert ModelWriter(tmp_path, "schema").applied is None
    with pytest.raises(TableNotReady):
        reader.read({"user": int64s([1])})
