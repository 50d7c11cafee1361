"""Trials whose study is elsewhere: what a worker asks, what is refused, and what a worker leaves behind that is gone."""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner.embedded import free_port
from services.trainer.event_files.history import History
from services.trainer.search.measure import Objective
from services.trainer.search.ray_workers import Order, check_cluster, check_same, program_of
from services.trainer.search.remote import SECONDS_LEFT, TELL, RemoteStudy, StudyDoor
from services.trainer.search.report import trial_rows
from services.trainer.search.trials import Limits
from services.trainer.train import digest_of
from tests.unit.services.trainer.search.test_trials import DOCUMENT, TASKS, Crash, Trainer, begun, runner, searched, space, without_time

pytestmark = pytest.mark.ml

NET = """
from services.common.ranker.networks.dense import Dense
from services.common.ranker.networks.interface import RankerNetwork


class Net(RankerNetwork):
    def build(self, spec):
        self.out = Dense(self.num_content, self.num_tasks)

    def deep(self, samples):
        return self.out(samples.{})
"""


def door_of(folder: Path, *, deadline: float | None = None, clock: Any = lambda: 0.0, **options: Any) -> tuple[Any, StudyDoor, list[str]]:
    folder.mkdir(exist_ok=True)
    study, lines = begun(folder, **options), list[str]()
    return study, StudyDoor(study, tell=lines.append, deadline=deadline, clock=clock), lines


def worker(study: Any, door: StudyDoor, number: int, trainer: Any, **changes: Any) -> Any:
    def call(name: str, arguments: tuple[Any, ...]) -> Any:
        # As a queue does it: what arrives is a copy.
        return copy.deepcopy(door.answer(number, *copy.deepcopy((name, arguments))))

    return runner(RemoteStudy(study.space, call), trainer, tell=lambda line: call(TELL, (line,)), **changes)


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_trials_at_a_distance_are_those_of_one_process(tmp_path: Path, pruner: str) -> None:
    study, door, lines = door_of(tmp_path / "far", pruner=pruner)
    worker(study, door, 0, Trainer()).run(Limits(trials=12, deadline=None))
    assert without_time(trial_rows(study)) == without_time(searched(tmp_path / "near", 12, pruner=pruner))
    assert len(lines) == 12 and door.is_done


def test_what_goes_wrong_at_a_distance_is_noted(tmp_path: Path) -> None:
    def loss(spec: Any) -> float:
        raise MemoryError("none left")

    study, door, lines = door_of(tmp_path)
    worker(study, door, 0, Trainer(loss)).run(Limits(trials=2, deadline=None))
    assert [row["reason"] for row in trial_rows(study)] == ["MemoryError: none left"] * 2
    assert all("none left" in line for line in lines)


def test_the_trial_of_a_worker_that_is_gone_is_tried_once_more(tmp_path: Path) -> None:
    def dies() -> None:
        raise Crash

    study, door, _ = door_of(tmp_path)
    for number in range(2):
        with pytest.raises(Crash):
            worker(study, door, number, Trainer(), check=dies).run(Limits(trials=3, deadline=None))
        assert not door.is_done
        assert door.end_of_worker(number, "WorkerCrashedError") is not None
        assert door.end_of_worker(number, "WorkerCrashedError") is None
    trainer = Trainer()
    worker(study, door, 2, trainer).run(Limits(trials=3, deadline=None))
    rows = trial_rows(study)
    assert [row["state"] for row in rows] == ["failed", "complete", "complete"] and trainer.finished == 2
    assert rows[0]["reason"] == "its process ended with WorkerCrashedError, twice"


def test_a_worker_hears_how_much_time_is_left_and_puts_its_trial_off(tmp_path: Path) -> None:
    now = [100.0]
    study, door, lines = door_of(tmp_path, deadline=130.0, clock=lambda: now[0])
    assert door.answer(0, SECONDS_LEFT, ()) == 30.0 and not door.is_late
    own_clock = iter(range(1_000))
    far = worker(study, door, 0, Trainer(), clock=lambda: float(next(own_clock)))
    assert far.run(Limits(trials=50, deadline=30.0))
    assert lines[-1].endswith("put off, the time is over") and not door.is_done
    now[0] = 130.0
    assert door.is_late and door.is_done
    assert door_of(tmp_path)[1].answer(0, SECONDS_LEFT, ()) is None


@pytest.mark.parametrize(("name", "arguments"), [("set_start", ({}, [])), ("__class__", ()), ("complete", (1, 0.1, {})), ("same_as", (7,))])
def test_a_worker_may_ask_for_its_own_trial_and_no_more(tmp_path: Path, name: str, arguments: tuple[Any, ...]) -> None:
    study, door, _ = door_of(tmp_path)
    assert door.answer(1, "next", (5,))[0] == 1, "trial 0 is the start"
    with pytest.raises(ValueError, match=r"a worker asks for|has not begun"):
        door.answer(0, name, arguments)
    door.answer(1, "complete", (1, 0.5, {}))
    assert [row["value"] for row in trial_rows(study)] == [0.5]


def order(study: Any) -> Order:
    return Order(
        options=Namespace(trials=3, data="events.parquet"),
        folder="/nowhere",
        space=study.space,
        objective=Objective("log_loss", TASKS, {}, []),
        digest="0",
        sources={"services/trainer/search/remote.py": "0"},
    )


def test_a_space_whose_spec_was_used_travels(tmp_path: Path) -> None:
    given = space(tmp_path)
    raw_feature = {"raw_feature": {"feature_name": "price", "expression": "item:price", "boundaries": [1, 10]}}
    document = given.document | {"format": 2, "features": [raw_feature]}
    used = replace(given, document=document, start=FeatureSpec.parse(document))
    assert used.start.plan.wanted
    arrived = ForkingPickler.loads(ForkingPickler.dumps(used))
    assert (arrived.start, arrived.parameters, arrived.source) == (used.start, used.parameters, used.source)
    assert arrived.start_values() == used.start_values()


def test_the_program_of_a_network_of_ones_own_holds_its_file(tmp_path: Path) -> None:
    found = []
    for name, reads in (("one", "item_BC"), ("same", "item_BC"), ("other", "user_BC")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "spec.yaml").touch()
        (folder / f"net_{name}.py").write_text(NET.format(reads))
        document = DOCUMENT | {"network": {"module": f"net_{name}:Net"}}
        found.append(program_of(FeatureSpec.parse(document, source=str(folder / "spec.yaml"))))
    assert found[0]["network.module"] == found[1]["network.module"] != found[2]["network.module"]
    assert found[0]["torch"] and "network.module" not in program_of(FeatureSpec.parse(DOCUMENT))


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match="RAY_ADDRESS=auto: Ray is not installed here"):
        check_cluster("auto")


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nothing_answers_is_refused_before_anything_is_read(form: str) -> None:
    address = form.format(f"127.0.0.1:{free_port()}")
    with pytest.raises(ConfigurationError, match=f"RAY_ADDRESS={address}: nothing answers there"):
        check_cluster(address)


def test_a_node_with_another_program_or_other_events_is_refused(tmp_path: Path) -> None:
    study, _, _ = door_of(tmp_path)
    here = order(study)
    with pytest.raises(ConfigurationError, match=r"has another Tunemesh than where the search runs: services/trainer/search/remote\.py"):
        check_same(here, History([], {}))
    here = replace(here, sources={})
    with pytest.raises(ConfigurationError, match=r"reads other events from events\.parquet than where the search runs"):
        check_same(here, History([], {}))
    check_same(replace(here, digest=digest_of(History([], {}))), History([], {}))
