"""The runner of the tests: what runs where, what is told at the end, and that nothing outlives it."""

import subprocess
import sys
import time

import pytest

from tests.run import execution, sharing
from tests.run.plan import ROOT, Lane, lanes
from tests.run.report import Outcome, read, summarise, write_slowest


def test_every_tier_runs_in_its_environment_and_the_whole_mesh_without_company() -> None:
    (light, ml), (alone,) = lanes(cores=2)
    assert (light.environment, light.marker, light.workers) == ("light", "not ml and not deep and not alone and not e2e", 3)
    assert (ml.environment, ml.marker, ml.workers) == ("ml", "ml and not deep and not alone and not e2e", 1)
    assert (alone.environment, alone.marker, alone.workers) == ("light", "not ml and not deep and (alone or e2e)", 0)
    assert all("/tests/e2e/" in path or "/tests/faults/" in path or "/tests/integration/" in path for path in alone.paths)


def test_chosen_paths_and_arguments_go_to_every_lane() -> None:
    for phase in lanes(["tests/unit/mesh"]):
        for lane in phase:
            assert lane.command(["-k", "plan"])[-3:] == ["-k", "plan", "tests/unit/mesh"]


@pytest.mark.parametrize(
    ("node_id", "unit"),
    [
        ("tests/unit/tests/test_run.py::test_x[a::b]", "tests/unit/tests/test_run.py"),
        ("tests/integration/loadtests/test_load.py::test_x", "tests/integration/loadtests/test_load.py"),
        ("tests/integration/test_infrastructure.py::test_x[1]", "tests/integration/test_infrastructure.py::test_x[1]"),
    ],
)
def test_tests_of_one_started_server_stay_together_and_others_go_where_there_is_room(node_id: str, unit: str) -> None:
    assert sharing.unit_of(node_id) == unit


def test_the_files_that_begin_first_exist() -> None:
    assert [path for path in sharing.SECONDS if not (ROOT / path).exists()] == []


REPORT = """<testsuites><testsuite>
<testcase file="tests/a.py" name="test_good" time="1.5"/>
<testcase file="tests/a.py" name="test_bad" time="2.5"><failure message="no"/></testcase>
<testcase file="tests/a.py" name="test_broken" time="0"><error message="no"/></testcase>
<testcase file="tests/a.py" name="test_gpu" time="0"><skipped message="needs a GPU"/></testcase>
<testcase file="tests/a.py" name="test_lazy" time="0"><skipped message="{reason}"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def lane(tmp_path, monkeypatch) -> Lane:
    monkeypatch.setattr("tests.run.plan.REPORTS", tmp_path)
    return Lane(name="some", environment="light", marker="not ml", paths=())


def test_the_summary_tells_failures_skips_and_the_slowest_and_ends_with_the_verdict(lane, capsys) -> None:
    lane.report.write_text(REPORT.format(reason="set KAFKA_HOME"))
    assert not summarise([read(Outcome(lane, 1, 7.0))], 8.0)
    said = capsys.readouterr().out
    for text in ("2.5 s  tests/a.py::test_bad", "test_gpu: needs a GPU", "FAILED:\n  tests/a.py::test_bad\n  tests/a.py::test_broken\n"):
        assert text in said
    assert said.splitlines()[-1] == "FAILED: 1 passed, 2 failed, 2 skipped in 8 s"


def test_a_skip_for_want_of_anything_else_than_a_gpu_docker_or_kafka_fails_the_run(lane, capsys) -> None:
    lane.report.write_text(REPORT.format(reason="no time today"))
    outcome = read(Outcome(lane, 0, 7.0))
    assert not outcome.is_good and outcome.wrongly_skipped == ["tests/a.py::test_lazy: no time today"]
    assert not summarise([outcome], 8.0)


def test_the_slowest_tests_are_written_as_a_table(lane, tmp_path) -> None:
    lane.report.write_text(REPORT.format(reason="set KAFKA_HOME"))
    write_slowest([read(Outcome(lane, 1, 7.0))], tmp_path / "slowest.md")
    lines = (tmp_path / "slowest.md").read_text().splitlines()
    assert lines[:3] == ["| seconds | test |", "|---:|---|", "| 2.5 | `tests/a.py::test_bad` |"]


def test_nothing_at_all_is_no_success(lane) -> None:
    assert not summarise([read(Outcome(lane, 5, 0.1))], 0.1)


class Script(Lane):
    """A lane whose process is a script."""

    def command(self, extra=()):
        return [sys.executable, "-c", self.marker]


def script(name: str, text: str) -> Script:
    return Script(name=name, environment="light", marker=text, paths=())


def test_lanes_of_a_phase_run_side_by_side_and_each_gives_its_code(lane, tmp_path) -> None:
    meet = """
import pathlib, sys, time
mine, other = pathlib.Path({mine!r}), pathlib.Path({other!r})
mine.touch()
while not other.exists():
    time.sleep(0.01)
sys.exit({code})
"""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    one = script("one", meet.format(mine=first, other=second, code=3))
    two = script("two", meet.format(mine=second, other=first, code=4))
    assert [outcome.code for outcome in execution.run_phase([one, two], [])] == [3, 4]


def test_a_lane_that_takes_longer_than_its_limit_is_ended_and_fails(lane) -> None:
    (outcome,) = execution.run_phase([script("hangs", "import time; time.sleep(600)")], [], limit_s=0.2)
    assert not outcome.is_good and outcome.stopped == "ended by the run after 0 s"


def test_an_interrupted_run_leaves_no_lane_behind(lane, monkeypatch) -> None:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def remember(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "_ended", interrupt)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execution.run_phase([script("one", "import time; time.sleep(600)"), script("two", "import time; time.sleep(600)")], [])
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    assert time.monotonic() - before < 60
