"""kill -9 of each process of the running mesh but the in-memory broker: the demo still ends well and nothing acknowledged is lost."""

import os
import signal
import time

import pytest

from services.mesh.state import ProcessId
from tests.e2e.demo_run import DemoRun

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(900)]

VICTIMS = ("router", "recommender", "triton", "updater", "feedback_collector", "trainer", "joiner", "features", "redis")
PAUSE_S = 3.0


def kill_and_wait_for_restart(run: DemoRun, name: str) -> None:
    before = run.mesh().services[name]
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        assert run.process.poll() is None, f"the demo ended while {name} was down:\n{run.said}"
        assert time.monotonic() < deadline, f"{name} was not started again:\n{run.mesh()}"
        now = run.mesh().services[name]
        if now.pid != before.pid and now.state == "healthy" and ProcessId(now.pid, now.start_ticks).is_alive:
            return
        time.sleep(0.2)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with DemoRun(tmp_path_factory.mktemp("kills"), "--events", "3000", "--rate", "20", sample_ratio=0.0) as run:
        run.wait_for_replay(events=50, timeout_s=300)
        for name in VICTIMS:
            kill_and_wait_for_restart(run, name)
            time.sleep(PAUSE_S)
        return run.report(timeout_s=500)


def test_the_runner_restarted_each_one_and_the_demo_ended_well(report):
    assert {name: report["restarts"][name] for name in VICTIMS} == dict.fromkeys(VICTIMS, 1)
    assert report["events_replayed"] >= 3000
    assert report["failed_rpcs"] == 0


def test_each_acknowledged_feedback_is_in_samples_a_dead_letter_or_the_orphans(report):
    placed = report["accounting"]
    assert placed["acknowledged"] == report["events_replayed"]
    assert placed["missing"] == 0
    # An answer without features (Redis was down) teaches nothing: the feedback on it is set aside as such.
    assert placed["in_dlq"] <= report["degraded_answers"].get("features_unavailable", 0)


def test_there_are_no_more_orphans_than_exposures_that_the_router_had_not_flushed(report):
    placed = report["accounting"]
    assert placed["orphans"] <= placed["exposures_not_logged"] <= 50


def test_the_trainer_ends_with_each_sample_learned_once(report):
    assert report["trainer"]["samples_trained"] == report["accounting"]["samples"]
