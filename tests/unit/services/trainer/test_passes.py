from __future__ import annotations

from pathlib import Path

import pytest

from services.common.platform.artifacts import list_artifacts
from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_records import pack_records
from services.trainer import passes as module
from services.trainer.learner import LearnerConfig
from services.trainer.passes import Passes, PassesConfig, Task, Trained
from services.trainer.replay_order import BatchConfig
from services.trainer.training_checkpoint import TrainingCheckpoints
from tests.learning import CATEGORIES, ITEMS, SPEC, interactions

pytestmark = pytest.mark.ml

EVENTS = interactions(240)
TASK = Task(spec=SPEC, events=EVENTS[:200], categories=CATEGORIES, item_ids=ITEMS, held_out=EVENTS[200:])


class Killed(Exception):
    """The process died right after it had written a checkpoint."""


class DyingCheckpoints(TrainingCheckpoints):
    """Writes one checkpoint, and dies."""

    def write(self, standing, learner, best) -> None:
        super().write(standing, learner, best)
        raise Killed


def train(
    epochs: int, checkpoints: TrainingCheckpoints | None = None, *, task: Task = TASK, said: list[str] | None = None, **options
) -> Trained:
    config = BatchConfig(epochs=epochs, events_per_step=16)
    passes = PassesConfig(checkpoint_events=32 if checkpoints is not None else 0, **options)
    return Passes(task, config, LearnerConfig(), passes, checkpoints, say=(said if said is not None else []).append).run()


def outcome(trained: Trained) -> tuple:
    states = {name: array.tobytes() for name, array in pack_records(trained.states.records()).items()}
    return trained.learner.state_hash(), states, trained.best_pass, trained.num_passes, trained.held_out_losses


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_dies_at_every_checkpoint_ends_as_one_that_never_dies(tmp_path: Path, epochs: int) -> None:
    deaths, said = 0, []
    while True:
        try:
            trained = train(epochs, DyingCheckpoints(SPEC, str(tmp_path / "base"), "f"), said=said, patience=9)
            break
        except Killed:
            deaths += 1
            assert len(list_artifacts(tmp_path / "base.training")) == 1
            assert deaths < 50
    assert deaths >= 6 * epochs
    assert outcome(trained) == outcome(train(epochs, patience=9))
    assert sum(line.startswith("going on from a checkpoint") for line in said) == deaths


def test_several_passes_end_when_one_is_no_better_and_the_best_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(module, "frozen_loss", lambda *_: next(losses))
    trained = train(9, patience=2)
    assert (trained.num_passes, trained.best_pass, trained.held_out_losses) == (4, 2, (3.0, 2.0, 2.5, 2.1))
    without = Task(spec=SPEC, events=TASK.events, categories=CATEGORIES, item_ids=ITEMS)
    assert trained.learner.state_hash() == train(2, task=without).learner.state_hash()


def test_a_loss_that_is_no_number_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([float("nan"), 2.0, float("nan")])
    monkeypatch.setattr(module, "frozen_loss", lambda *_: next(losses))
    assert train(3).best_pass == 2


def test_without_a_held_out_part_all_passes_are_made() -> None:
    without = Task(spec=SPEC, events=TASK.events, categories=CATEGORIES, item_ids=ITEMS)
    trained = train(3, task=without)
    assert (trained.num_passes, trained.best_pass, trained.held_out_losses) == (3, 3, ())


def test_measuring_passes_changes_nothing_of_what_is_learned() -> None:
    without = Task(spec=SPEC, events=TASK.events, categories=CATEGORIES, item_ids=ITEMS)
    ours = train(2, patience=9)
    assert ours.held_out_losses[0] > 0
    assert ours.learner.state_hash() == train(ours.best_pass, task=without).learner.state_hash()


def test_a_checkpoint_of_another_training_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(1, DyingCheckpoints(SPEC, str(tmp_path / "base"), "f"))
    with pytest.raises(ConfigurationError, match=r"base.training: is the checkpoint of another training.*delete the folder"):
        train(1, TrainingCheckpoints(SPEC, str(tmp_path / "base"), "g"))
    array = next((tmp_path / "base.training").rglob("first_moment.npy"))
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"truncated; delete the folder"):
        train(1, TrainingCheckpoints(SPEC, str(tmp_path / "base"), "f"))


def test_checkpoints_are_gone_when_they_are_no_longer_needed(tmp_path: Path) -> None:
    checkpoints = TrainingCheckpoints(SPEC, str(tmp_path / "base"), "f")
    train(1, checkpoints)
    assert len(list_artifacts(tmp_path / "base.training")) == 1
    checkpoints.delete()
    assert not (tmp_path / "base.training").exists()
    assert checkpoints.read() is None
