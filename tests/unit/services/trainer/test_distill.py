"""A student and its teacher: what a lesson does to a loss, that no label reaches the student through the teacher, and the whole command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer import train
from services.trainer.distill import main as distill
from services.trainer.distill.costs import Scored, costs_ms
from services.trainer.distill.lessons import ALONE, STUDENT, TEACHER, check_fits, learn, teach
from services.trainer.group_columns import GroupColumns, columns_of
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.passes import Task
from services.trainer.replay_order import BatchConfig
from services.trainer.targets import Float32Array, Lesson, taught
from tests.learning import CATEGORIES, ITEMS, KEYED, SPEC, attributes_of, groups, interactions, with_features, with_network

pytestmark = pytest.mark.ml

SMALL = with_network("two_tower")
TASKS = SPEC.model_dump(mode="json")["tasks"]


def test_a_lesson_comes_on_top_and_weighs_as_its_sample_does() -> None:
    ones_BT = np.array([[1.0, 0.0], [0.0, 0.0], [0.25, 0.0]], np.float32)
    zeros_BT = np.array([[0.0, 1.0], [0.5, 0.0], [0.75, 0.0]], np.float32)
    said_BT = np.array([[0.5, 0.5], [0.25, 0.9], [1.0, 0.9]], np.float32)
    towards_one, towards_zero = taught(ones_BT, zeros_BT, Lesson(said_BT, np.float32(2.0)))
    assert towards_one.tolist() == [[2.0, 1.0], [0.25, 0.0], [2.25, 0.0]]
    assert towards_zero.tolist() == [[1.0, 2.0], [1.25, 0.0], [0.75, 0.0]]


def test_an_answer_that_replaces_what_was_said_of_an_item_brings_no_lesson() -> None:
    """Such a sample takes one loss back and brings another: the lesson of the first one stays."""
    ones_BT, zeros_BT = np.array([[1.0]], np.float32), np.array([[-1.0]], np.float32)
    moved = taught(ones_BT, zeros_BT, Lesson(np.array([[0.9]], np.float32), np.float32(3.0)))
    assert [part.tolist() for part in moved] == [[[1.0]], [[-1.0]]]


def negatives(count: int) -> list[SampleGroup]:
    """Return groups of what nobody answered: the act, whose labels say more than interact, is left out."""
    found = []
    for group in groups(count, spec=SMALL):
        if len(group.samples) > 1:
            del group.samples[0]
            group.features_block = exposure_block.select(group.features_block, range(1, len(group.samples) + 1))
            found.append(group)
    return found


def labelled(group: SampleGroup, said_NT: Float32Array) -> SampleGroup:
    """Return a group whose negatives have these labels of interact, in place of 0."""
    changed = SampleGroup.FromString(group.SerializeToString())
    for sample, said_T in zip(changed.samples, said_NT, strict=True):
        sample.labels[0].value = float(said_T[0])
    return changed


def test_a_lesson_that_weighs_as_much_as_the_labels_is_learning_the_mean_of_both_twice() -> None:
    unanswered, rng = negatives(40), np.random.default_rng(0)
    # Eighths: sums and halves of them are exact.
    said = [(rng.integers(0, 9, (len(group.samples), 2)) / 8).astype(np.float32) for group in unanswered]
    columns = [columns_of(SMALL, group) for group in unanswered]
    by_lesson, by_nothing = (Learner(SMALL) for _ in range(2))
    by_label = Learner(SMALL, LearnerConfig(loss_unit=LearnerConfig().loss_unit / 2))
    by_lesson.learn(columns, Lesson(np.concatenate(said), np.float32(1.0)))
    by_label.step([labelled(group, one / 2) for group, one in zip(unanswered, said, strict=True)])
    by_nothing.learn(columns)
    assert by_lesson.state_hash() == by_label.state_hash() != by_nothing.state_hash()


class Listener:
    """A student that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[Float32Array] = []

    def learn(self, columns: Sequence[GroupColumns], lesson: Lesson) -> None:
        """Take a lesson."""
        assert sum(len(group) for group in columns) == len(lesson.said_BT)
        self.said.append(lesson.said_BT)


def test_what_a_teacher_says_of_a_step_contains_nothing_of_its_labels() -> None:
    """It is the same whatever the labels of the step are, and the next step's is not."""
    teacher = with_network({"name": "deepfm"})
    pairs = list(zip(groups(60, spec=SMALL), groups(60, spec=teacher), strict=True))
    heard = []
    for is_turned in (False, True):
        learners: dict[str, Any] = {STUDENT: Listener(), ALONE: Learner(SMALL), TEACHER: Learner(teacher)}
        middle = [(turned(ours), turned(theirs)) for ours, theirs in pairs[20:40]] if is_turned else pairs[20:40]
        for step in (pairs[:20], middle, pairs[40:]):
            learn(learners, SMALL, step, 1.0)
        heard.append(learners[STUDENT].said)
    for step, is_same in enumerate((True, True, False)):
        assert np.array_equal(heard[0][step], heard[1][step]) == is_same, f"step {step}"


def turned(group: SampleGroup) -> SampleGroup:
    """Return a group whose negatives are positives; a sample keeps its weight."""
    changed = SampleGroup.FromString(group.SerializeToString())
    for sample in changed.samples:
        if not sample.revision:
            for label in sample.labels:
                label.value = 1.0 - label.value
    return changed


def task_of(spec: FeatureSpec, count: int) -> Task:
    acts = interactions(count)
    return Task(spec=spec, events=acts, categories=CATEGORIES, item_ids=ITEMS, attributes=attributes_of(spec) if spec.features else None)


def test_the_student_beside_is_a_training_without_a_teacher_whoever_teaches_and_however_much() -> None:
    hashes = {}
    for name, teacher, weight in (("own", SMALL, 0.5), ("more", with_features(KEYED), 0.5), ("all", SMALL, 1.0), ("none", SMALL, 0.0)):
        found = teach(task_of(SMALL, 150), task_of(teacher, 150), BatchConfig(), weight, say=lambda _: None)
        hashes[name] = {who: learner.state_hash() for who, learner in found.learners.items()}
    assert len({of[ALONE] for of in hashes.values()}) == 1
    assert len({of[STUDENT] for of in hashes.values()}) == 4
    assert hashes["none"][STUDENT] == hashes["none"][ALONE]
    assert hashes["own"][TEACHER] == hashes["own"][ALONE], "the teacher is not taught"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": [*TASKS[:1], TASKS[1] | {"labels": {"rating": {"at_least": 3}}}]}, "tasks is "),
        ({"negatives": {"keep_rate": 0.5}}, "negatives is "),
        ({"kinds": {"rating": {"value_range": [0, 10]}, "click": {}}}, "kinds is "),
    ],
)
def test_a_teacher_of_something_else_is_refused_with_what_differs(changes: dict[str, Any], named: str) -> None:
    other = FeatureSpec.parse(SPEC.model_dump(mode="json") | changes)
    with pytest.raises(ConfigurationError, match=named):
        check_fits(SPEC, other)


def test_a_teacher_may_have_another_network_more_features_longer_rows_and_more_history() -> None:
    tables = {side: {"dim": 32, "admission": {"min_count": 1}} for side in ("user", "item")}
    check_fits(SMALL, with_features(KEYED, tables=tables, history={"length": 50}, network={"name": "mmoe"}))


def test_costs_are_medians_of_turns() -> None:
    ticks = iter(np.cumsum([0.0, 0.001, 0.0, 0.003] * 6).tolist())
    one, other = (Scored(_Silent(), [b"block"], ["1"]) for _ in range(2))
    assert costs_ms({"a": one, "b": other}, rounds=6, clock=lambda: next(ticks)) == {"a": pytest.approx(1.0), "b": pytest.approx(3.0)}


class _Silent:
    def score_block(self, block: bytes, item_ids: list[str], positions: None = None) -> None:
        """Take no time of the test's clock."""


def files(folder: Path) -> list[str]:
    acts = interactions(400, num_users=40)
    rows = [
        {"user_id": one.user_id, "item_id": one.item_id, "kind": one.kind, "value": one.value, "time": 1_700_000_000 + one.time_ms // 1000}
        for one in acts
    ]
    pd.DataFrame(rows).assign(hour=[index % 24 for index in range(len(rows))]).to_parquet(folder / "events.parquet")
    teacher = with_features([feature for feature in KEYED if "hour" in str(feature)], network={"name": "deepfm"})
    for name, spec in (("student", SMALL), ("teacher", teacher)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    common = {"--data": "events.parquet", "--spec": "student.yaml"}
    return [text for option, name in common.items() for text in (option, str(folder / name))]


def test_the_command_writes_a_base_of_the_student_and_says_what_teaching_was_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = files(tmp_path)
    assert distill.main([*common, "--teacher", str(tmp_path / "teacher.yaml"), "--out", str(tmp_path / "base")]) == 0
    said = capsys.readouterr().out
    assert said.count("400 events from") == 2 and "what the teacher reads besides:" in said  # the hour
    manifest, arrays = read_artifact(str(tmp_path / "base"), expect_schema_hash=SMALL.schema_hash)
    student = Learner(SMALL)
    student.load_state_arrays(arrays)
    report = json.loads((tmp_path / "base" / "report.json").read_text())
    assert (manifest.schema_hash, manifest.metadata["state_hash"]) == (SMALL.schema_hash, student.state_hash())
    assert report["base"]["state_hash"] == student.state_hash()
    everyone = report["tasks"]["interact"]["all"]["contestants"]
    assert {STUDENT, "student_frozen", ALONE, TEACHER, "items"} <= set(everyone)
    assert set(report["verdict"]["interact"]["log_loss"].split()) <= {"better", "worse", "no", "different", "not", "told"}
    lessons = report["lessons"]
    assert lessons[STUDENT]["weights"] < lessons[TEACHER]["weights"] and lessons["weight"] == 1.0
    assert "interact, log-loss: " in said and f"to score {lessons['items']} items: student " in said
    assert "# What a teacher was worth" in (tmp_path / "base" / "report.md").read_text()
    # Who has no teacher is what `make train` makes of the same files.
    assert train.main([*common, "--out", str(tmp_path / "plain")]) == 0
    plain = json.loads((tmp_path / "plain" / "report.json").read_text())
    assert plain["tasks"]["interact"]["all"]["contestants"]["live"] == everyone[ALONE]
    assert plain["tasks"]["like"]["all"]["contestants"]["live"] == report["tasks"]["like"]["all"]["contestants"][ALONE]


def test_files_are_read_once_for_two_specs_that_read_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = files(tmp_path)
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(SPEC.model_dump(mode="json")))
    out = ["--out", str(tmp_path / "base"), "--scored-events", "5"]
    assert distill.main([*common, "--teacher", str(tmp_path / "plain.yaml"), *out]) == 0
    assert capsys.readouterr().out.count("400 events from") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weight", "0"], "--weight must be in (0, 100]"),
        (["--weight", "nan"], "--weight must be in (0, 100]"),
        (["--held-out", "0"], "--held-out must be in (0, 1)"),
        (["--held-out", "0.001"], "too few events are held out"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*files(tmp_path), "--teacher", str(tmp_path / "teacher.yaml"), "--out", str(tmp_path / "base"), *options]
    assert distill.main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
