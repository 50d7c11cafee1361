"""Trials over one study, with a made-up trainer: what is drawn, ended early, failed, put off, taken up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.search.measure import PORTIONS, Objective
from services.trainer.search.report import failures, trial_rows
from services.trainer.search.space import Space, load_space
from services.trainer.search.study import Study, held
from services.trainer.search.trials import Limits, Runner

pytestmark = pytest.mark.ml

DOCUMENT: dict[str, Any] = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text())
SPACE = """
learning.dense_rate: {float: [0.0001, 0.1], log: true}
learning.user_rate: {float: [0.01, 1.0], log: true}
network: {choice: [dcn_din, deepfm]}
network.cross_layers: {int: [1, 3]}
"""
TASKS = ("interact", "like")
START = {task: {"log_loss": 1.0, "auc": 0.5} for task in TASKS}


class Crash(BaseException):
    """What kills a process in the middle of a trial."""


def space(folder: Path) -> Space:
    (folder / "space.yaml").write_text(SPACE)
    return load_space(folder / "space.yaml", DOCUMENT, FeatureSpec.parse(DOCUMENT))


def begun(folder: Path, *, seed: int = 0, pruner: Any = "none", fingerprint: str = "same") -> Study:
    (folder / "out").mkdir(exist_ok=True)
    study = Study(folder / "out", space(folder), seed=seed, pruner=pruner, fingerprint=fingerprint)
    if study.start is None:
        study.set_start(START, [dict.fromkeys(TASKS, 1.0)] * PORTIONS, parameters=7, seconds=1.0)
    return study


def loss_of(spec: FeatureSpec) -> float:
    """A made-up world: one rate and one network are right."""
    return 0.5 + abs((spec.learning.dense_rate or 0) - 0.01) * 3 + (spec.network.name != "dcn_din") * 0.2


class Trainer:
    """Learns nothing, and says what `loss_of` says; counts the specs that it finished."""

    def __init__(self, loss: Callable[[FeatureSpec], float] = loss_of) -> None:
        self.loss, self.finished, self.begun = loss, 0, 0

    def __call__(self, spec: FeatureSpec, parts: Any, config: Any, *, on_portion: Any, after_step: Any) -> Any:
        self.begun += 1
        loss = self.loss(spec)
        for number in range(1, PORTIONS + 1):
            after_step()
            on_portion(number, dict.fromkeys(TASKS, loss))
        self.finished += 1
        return SimpleNamespace(by_task=lambda: {task: {"log_loss": loss, "auc": 1 - loss} for task in TASKS}, parameters=7)


def runner(study: Study, trainer: Any, **changes: Any) -> Runner:
    objective = Objective("log_loss", TASKS, START, [dict.fromkeys(TASKS, 1.0)] * PORTIONS)
    given = {"study": study, "parts": None, "config": None, "objective": objective, "tell": lambda line: None, "learn": trainer}
    return Runner(**(given | changes))


def searched(folder: Path, trials: int, **options: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    study = begun(folder, **options)
    assert not runner(study, Trainer()).run(Limits(trials=trials, deadline=None))
    return trial_rows(study)


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "number", "same_as")} for row in rows]


def test_the_same_seed_draws_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    one, two, other = (searched(tmp_path / name, 12, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert without_time(one) == without_time(two) != without_time(other)
    assert len(one) == 12 and all(("network.cross_layers" in row["values"]) == (row["values"]["network"] == "dcn_din") for row in one)


def test_a_search_that_dies_in_the_middle_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", 12)
    folder = tmp_path / "killed"
    folder.mkdir()
    finished = 0
    for dies_in in (3, 6, 11):
        trainer = Trainer()
        steps = itertools.count()

        def check(steps=steps, last=(dies_in - finished) * PORTIONS + 3) -> None:
            if next(steps) == last:
                raise Crash

        study = begun(folder)
        study.take_up()
        with pytest.raises(Crash):
            runner(study, trainer, check=check).run(Limits(trials=12, deadline=None))
        finished += trainer.finished
    study, trainer = begun(folder), Trainer()
    assert study.take_up() == 1
    runner(study, trainer).run(Limits(trials=12, deadline=None))
    assert finished + trainer.finished == 12, "a finished trial was repeated"
    assert without_time(trial_rows(study)) == without_time(whole)
    more = Trainer()
    runner(study, more).run(Limits(trials=12, deadline=None))
    runner(study, more).run(Limits(trials=14, deadline=None))
    assert more.finished == 2


def test_a_trial_whose_process_dies_twice_has_failed(tmp_path: Path) -> None:
    def dies() -> None:
        raise Crash

    for _ in range(2):
        study = begun(tmp_path)
        study.take_up()
        with pytest.raises(Crash):
            runner(study, Trainer(), check=dies).run(Limits(trials=1, deadline=None))
    study = begun(tmp_path)
    study.take_up()
    runner(study, Trainer()).run(Limits(trials=1, deadline=None))
    rows = trial_rows(study)
    assert [row["state"] for row in rows] == ["failed"] and "twice" in rows[0]["reason"]


def test_what_goes_wrong_in_a_trial_is_noted_and_ends_nothing_else(tmp_path: Path) -> None:
    wrongs = itertools.cycle([MemoryError("128 GiB"), RuntimeError("a network of one's own"), None, float("nan")])

    def loss(spec: FeatureSpec) -> float:
        wrong = next(wrongs)
        if isinstance(wrong, Exception):
            raise wrong
        return loss_of(spec) if wrong is None else wrong

    study, lines = begun(tmp_path), []
    runner(study, Trainer(loss), tell=lines.append).run(Limits(trials=8, deadline=None))
    rows = trial_rows(study)
    states = [row["state"] for row in rows]
    assert states.count("complete") == 2 and states.count("failed") == 6
    assert {row["reason"] for row in rows if row["state"] == "failed"} == {
        "MemoryError: 128 GiB",
        "RuntimeError: a network of one's own",
        "NotFinite: what it is worth is no number",
    }
    assert failures(rows)[0].startswith("2 of 8 trials: ")
    assert len(lines) == 8 and any("failed (MemoryError: 128 GiB)" in line for line in lines)


def test_a_trial_that_the_time_ends_is_put_off_and_taken_up_later(tmp_path: Path) -> None:
    seconds = itertools.count()
    study = begun(tmp_path)
    assert runner(study, Trainer(), clock=lambda: float(next(seconds))).run(Limits(trials=9, deadline=25.0))
    done = len(trial_rows(study))
    assert 0 < done < 9
    again = begun(tmp_path)
    assert again.take_up() == 0
    trainer = Trainer()
    assert not runner(again, trainer).run(Limits(trials=9, deadline=None))
    assert trainer.begun == 9 - done
    assert without_time(trial_rows(again)) == without_time(searched(tmp_path / "whole", 9))


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_trials_behind_the_others_end_early_and_the_best_does_not(tmp_path: Path, pruner: Any) -> None:
    study, trainer = begun(tmp_path, pruner=pruner), Trainer()
    runner(study, trainer).run(Limits(trials=24, deadline=None))
    rows = trial_rows(study)
    early = [row for row in rows if row["state"] == "ended early"]
    assert early and trainer.finished < 24 and all(row["value"] is None for row in early)
    best = min(row["value"] for row in rows if row["value"] is not None)
    assert all(loss_of(study.space.spec(row["values"])) > best for row in early)


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigurationError, match=r"search\.db: is of another search: .*delete the folder"):
        begun(tmp_path, fingerprint="other")
    damaged = tmp_path / "damaged"
    (damaged / "out").mkdir(parents=True)
    (damaged / "out" / "search.db").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigurationError, match=r"search\.db: cannot be read"):
        begun(damaged)
    with held(tmp_path / "out"), pytest.raises(ConfigurationError, match="another search runs there"), held(tmp_path / "out"):
        pass


def test_a_relative_value_is_the_mean_over_tasks_of_what_is_missing() -> None:
    objective = Objective("auc", TASKS, {"interact": {"auc": 0.8}, "like": {"auc": 0.6}}, [])
    assert objective.value({"interact": {"auc": 0.9}, "like": {"auc": 0.6}}) == pytest.approx(0.75)
    losses = Objective("log_loss", ("like",), {"like": {"log_loss": 0.5}}, [{"like": 0.4}])
    assert losses.value({"like": {"log_loss": 0.25}, "interact": {"log_loss": None}}) == 0.5
    assert losses.of_portion(1, {"like": 0.2, "interact": 9.0}) == 0.5
