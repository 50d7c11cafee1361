import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32, ROW_DTYPE_INT8_ROWWISE

from services.common.platform.artifacts import list_artifacts, read_artifact, read_manifest
from services.common.platform.errors import ConfigurationError, CorruptArtifact, NotFound
from services.common.ranker.delta import rounded
from services.trainer.bases import BaseStore, base_name, read_initial_base
from services.trainer.checkpoints import Checkpoint, CheckpointStore, Counters, Retention, Version, checkpoint_name
from services.trainer.dedup import DedupWindow
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut, PassedOver, Restored
from tests.trainer_fakes.learner import FakeLearner


def checkpoint(number: int = 1, epoch: int = 2) -> Checkpoint:
    learner = FakeLearner()
    learner.tables["user"].slots_for_update(np.array([5, -7], np.int64))
    return Checkpoint(
        cut=Cut(
            name=checkpoint_name(epoch, number),
            lineage_id="L",
            epoch=epoch,
            base_id=base_name(1, 1),
            position=Position((PartitionPosition(10, 3, 300, 5), PartitionPosition(20, 4, 250))),
            delta_offset=17,
        ),
        seq=8,
        within_seq=9,
        counters=Counters(samples_trained=100, duplicates_skipped=2, unusable_skipped=1, refused_skipped=4),
        arrays=learner.state_arrays(),
        dedup=a_window().to_arrays(),
    )


def a_window() -> DedupWindow:
    window = DedupWindow(10, 10)
    window.add(np.array([1, 2**64 - 1], np.uint64), partition=1, exposure_offset=7, exposures_done=3)
    return window


def store(folder: Path, schema_hash: str = "s", keep: int = 2) -> CheckpointStore:
    retention = Retention(keep=keep, history_interval_ms=1_000, history_keep=0)
    return CheckpointStore(str(folder), model="ranker", schema_hash=schema_hash, retention=retention)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert store(tmp_path).newest() is None


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = checkpoint()
    url = store(tmp_path).write(written, now_ms=5)
    read = store(tmp_path).newest()
    assert read is not None
    assert (read.cut, read.seq, read.counters) == (written.cut, written.seq, written.counters)
    assert {name: array.tolist() for name, array in read.dedup.items()} == {
        name: array.tolist() for name, array in a_window().to_arrays().items()
    }
    assert read.arrays.keys() == written.arrays.keys()
    assert all((read.arrays[name] == array).all() for name, array in written.arrays.items())
    manifest = read_manifest(url).manifest
    assert (manifest.source_offsets, manifest.watermark_ms, manifest.lineage_id) == ((10, 20), 250, "L")


def test_the_newest_is_of_the_highest_epoch_and_older_ones_are_deleted(tmp_path: Path) -> None:
    for epoch, number in ((1, 9), (2, 1), (10, 1), (2, 2)):
        store(tmp_path).write(checkpoint(number, epoch), now_ms=5)
    newest = store(tmp_path).newest()
    assert newest is not None and newest.cut.name == checkpoint_name(10, 1)
    assert len(list_artifacts(store(tmp_path).url)) == 2


def test_a_damaged_checkpoint_is_left_out_for_an_older_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path).write(checkpoint(1), now_ms=5)
    newest = Path(store(tmp_path).write(checkpoint(2), now_ms=5))
    damaged = newest / "arrays" / "table" / "user" / "rows.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    read = store(tmp_path).newest()
    assert read is not None and read.cut.name == checkpoint_name(2, 1)
    assert "rows.npy" in caplog.text and "truncated" in caplog.text


def test_when_every_checkpoint_is_damaged_the_start_is_refused(tmp_path: Path) -> None:
    url = Path(store(tmp_path).write(checkpoint(1), now_ms=5))
    (url / "arrays" / "dense" / "w.npy").unlink()
    with pytest.raises(ConfigurationError, match=r"none of the 1 checkpoints in .* is sound .*dense/w\.npy is missing"):
        store(tmp_path).newest()


def test_a_checkpoint_of_another_feature_spec_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store(tmp_path).write(checkpoint(), now_ms=5)
    with pytest.raises(ConfigurationError, match=r"feature spec s, this trainer has other: restore .*TUNEMESH_ARTIFACTS_URL"):
        store(tmp_path, schema_hash="other").newest()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_reaches_neither_checkpoint_nor_base(tmp_path: Path, poison: float) -> None:
    sick = checkpoint()
    sick = replace(sick, arrays={**sick.arrays, "dense/w": np.array([poison], np.float32)})
    with pytest.raises(CorruptArtifact, match="dense/w holds NaN or infinity"):
        store(tmp_path).write(sick, now_ms=5)
    with pytest.raises(CorruptArtifact, match="dense/w holds NaN or infinity"):
        BaseStore(str(tmp_path), model="ranker", schema_hash="s", row_dtype=ROW_DTYPE_FP32, keep=3).write(sick, epoch=2, seq=1, now_ms=5)
    assert store(tmp_path).newest() is None


def test_a_base_holds_what_replicas_need_and_nothing_else(tmp_path: Path) -> None:
    bases = BaseStore(str(tmp_path), model="ranker", schema_hash="s", row_dtype=ROW_DTYPE_FP32, keep=2)
    artifact = bases.write(checkpoint(), epoch=3, seq=-1, now_ms=5)
    manifest, arrays = read_artifact(artifact.url, expect_schema_hash="s", expect_lineage="L")
    assert (manifest.kind, manifest.epoch, manifest.seq) == ("base", 3, -1)
    assert sorted(arrays) == sorted(
        ["dense/w", *(f"table/{table}/{part}" for table in ("user", "item") for part in ("ids", "rows", "default_row"))]
    )


def test_the_rows_of_a_base_are_as_exact_as_those_of_deltas(tmp_path: Path) -> None:
    written = checkpoint()
    rows = written.arrays["table/user/rows"]
    rows[:] = np.random.default_rng(1).normal(size=rows.shape)
    bases = BaseStore(str(tmp_path), model="ranker", schema_hash="s", row_dtype=ROW_DTYPE_INT8_ROWWISE, keep=2)
    held = read_artifact(bases.write(written, epoch=2, seq=1, now_ms=5).url, expect_schema_hash="s")[1]["table/user/rows"]
    np.testing.assert_array_equal(held, rounded(rows, ROW_DTYPE_INT8_ROWWISE))
    assert (held != rows).any()


def test_bases_are_deleted_only_when_asked(tmp_path: Path) -> None:
    bases = BaseStore(str(tmp_path), model="ranker", schema_hash="s", row_dtype=ROW_DTYPE_FP32, keep=2)
    for number in range(1, 5):
        written = checkpoint()
        bases.write(replace(written, cut=replace(written.cut, base_id=base_name(1, number))), epoch=1, seq=0, now_ms=5)
    assert len(list_artifacts(bases.url)) == 4
    bases.prune(base_name(1, 4), "L")
    assert [url.rsplit("/", 1)[1] for url in list_artifacts(bases.url)] == [base_name(1, 3), base_name(1, 4)]


def test_where_epochs_began_anew_bases_of_the_other_history_go_first(tmp_path: Path) -> None:
    bases = BaseStore(str(tmp_path), model="ranker", schema_hash="s", row_dtype=ROW_DTYPE_FP32, keep=2)

    def announced(epoch: int, lineage_id: str) -> list[str]:
        written = checkpoint()
        cut = replace(written.cut, base_id=base_name(epoch, 1), lineage_id=lineage_id)
        bases.write(replace(written, cut=cut), epoch=epoch, seq=0, now_ms=5)
        bases.prune(base_name(epoch, 1), lineage_id)
        return [url.rsplit("/", 1)[1] for url in list_artifacts(bases.url)]

    assert announced(8, "old") == [base_name(8, 1)]
    assert announced(9, "old") == [base_name(8, 1), base_name(9, 1)]
    assert announced(1, "new") == [base_name(1, 1), base_name(9, 1)]
    (tmp_path / "bases" / base_name(9, 1) / "manifest.json").write_text("{")
    assert announced(2, "new") == [base_name(1, 1), base_name(2, 1)], "a damaged one is nobody's"
    assert announced(3, "new") == [base_name(2, 1), base_name(3, 1)]
    assert announced(1, "new") == [base_name(epoch, 1) for epoch in (1, 2, 3)], "a later epoch took over: it decides"


def test_an_initial_base_that_is_missing_or_foreign_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^TUNEMESH_X=.*no READY artifact"):
        read_initial_base(str(tmp_path / "nowhere"), schema_hash="s", variable="TUNEMESH_X")
    artifact = BaseStore(str(tmp_path), model="ranker", schema_hash="foreign", row_dtype=ROW_DTYPE_FP32, keep=2).write(
        checkpoint(), epoch=0, seq=-1, now_ms=5
    )
    with pytest.raises(ConfigurationError, match=r"^TUNEMESH_X=.*schema 'foreign' is foreign"):
        read_initial_base(artifact.url, schema_hash="s", variable="TUNEMESH_X")


def test_the_newest_sound_checkpoint_at_or_before_a_time_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = [store(tmp_path, keep=9).write(checkpoint(number), now_ms=100 * number) for number in range(1, 6)]
    assert store(tmp_path).at_or_before(399, lineage_id="L").created_at_ms == 300
    found = store(tmp_path).at_or_before(400, lineage_id="L")
    assert (found.checkpoint.cut.name, found.url, found.created_at_ms) == (checkpoint_name(2, 4), written[3], 400)
    rows = Path(written[3]) / "arrays" / "table" / "user" / "rows.npy"
    rows.write_bytes(b"damaged")
    (Path(written[4]) / "manifest.json").write_text("{")
    assert store(tmp_path).at_or_before(10**6, lineage_id="L").checkpoint.cut.name == checkpoint_name(2, 3)
    assert "rows.npy" in caplog.text
    with pytest.raises(NotFound, match=r"no checkpoint was written at or before 1970-01-01 00:00:00Z \(99\); the 4 that are kept"):
        store(tmp_path).at_or_before(99, lineage_id="L")
    with pytest.raises(NotFound, match="an impossible time"):
        store(tmp_path).at_or_before(-(2**62), lineage_id="L")
    with pytest.raises(NotFound, match="no checkpoint of this broker's history is kept"):
        store(tmp_path).at_or_before(10**6, lineage_id="other")


def test_what_was_restored_is_read_back_with_the_checkpoint(tmp_path: Path) -> None:
    written = checkpoint()
    restored = Restored(checkpoint="checkpoint-000001-000004", skipped=(5, 0), actor="ann")
    passed_over = (PassedOver(0, 7, 12), PassedOver(1, 3, 2**60))
    store(tmp_path).write(replace(written, cut=replace(written.cut, restored=restored, passed_over=passed_over)), now_ms=5)
    read = store(tmp_path).newest()
    assert read is not None and (read.cut.restored, read.cut.passed_over) == (restored, passed_over)


def test_old_checkpoints_are_thinned_out(tmp_path: Path) -> None:
    retention = Retention(keep=2, history_interval_ms=1_000, history_keep=2)
    checkpoints = CheckpointStore(str(tmp_path), model="ranker", schema_hash="s", retention=retention)
    for number in range(1, 11):
        checkpoints.write(checkpoint(number), now_ms=400 * number)
    kept = [int(url.rsplit("-", 1)[1]) for url in list_artifacts(checkpoints.url)]
    assert kept == [8, 9, 10]
    assert [400 * number // 1_000 for number in kept] == [3, 3, 4]


def test_the_checkpoint_of_the_newest_weights_up_to_a_version_is_found(tmp_path: Path) -> None:
    kept = store(tmp_path, keep=9)
    for number, within_seq in ((1, 4), (2, 8), (3, 8), (4, 12)):
        kept.write(replace(checkpoint(number), seq=within_seq - 1, within_seq=within_seq), now_ms=100 * number)
    copy = checkpoint(5)
    kept.write(replace(copy, cut=replace(copy.cut, restored=Restored(checkpoint="c", skipped=(0, 0), actor="ann", epoch=2))), now_ms=500)

    def found(epoch: int, seq: int) -> str:
        return kept.at_or_before_version(Version(epoch, seq), lineage_id="L").checkpoint.cut.name

    assert [found(2, seq) for seq in (4, 7, 8, 11, 12, 99)] == [checkpoint_name(2, number) for number in (1, 1, 3, 3, 4, 4)]
    assert found(3, -1) == found(3, 7) == checkpoint_name(2, 5)
    with pytest.raises(NotFound, match=r"no checkpoint holds version 2\.3 or one before it; the 5 that are kept hold 2\.4 to 3\.-1"):
        found(2, 3)
    with pytest.raises(NotFound, match="no checkpoint of this broker's history is kept"):
        kept.at_or_before_version(Version(2, 8), lineage_id="OTHER")


def test_a_checkpoint_written_before_it_said_how_new_its_weights_are_stands_for_the_next_version(tmp_path: Path) -> None:
    url = store(tmp_path).write(checkpoint(), now_ms=100)
    path = Path(url) / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["metadata"]["within_seq"], fields["metadata"]["row_dtype"]
    path.write_text(json.dumps(fields))
    newest = store(tmp_path).newest()
    assert newest is not None and (newest.within_seq, newest.cut.row_dtype) == (9, 0)
    assert store(tmp_path).at_or_before_version(Version(2, 9), lineage_id="L").url == url
    with pytest.raises(NotFound):
        store(tmp_path).at_or_before_version(Version(2, 8), lineage_id="L")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(epoch="2"),
        lambda fields: fields.update(epoch=2**70),
        lambda fields: fields.update(model=None),
        lambda fields: fields["metadata"].update(delta_offset=1e400),
        lambda fields: fields["metadata"].update(partitions=[[-5, 0, 0]]),
        lambda fields: fields["metadata"].update(partitions=7),
        lambda fields: fields["metadata"].update(restored=[1]),
        lambda fields: fields["metadata"].update(passed_over=[[1, 2]]),
        lambda fields: fields["metadata"].update(passed_over=7),
        lambda fields: fields.update(metadata=[]),
        lambda fields: fields["files"].update({"arrays/dedup/sample_ids.npy": {"size_bytes": "a", "crc32c": 1}}),
    ],
)
def test_a_manifest_that_holds_other_things_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(store(tmp_path).write(checkpoint(), now_ms=100)) / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigurationError, match="none of the 1 checkpoints"):
        store(tmp_path).newest()
