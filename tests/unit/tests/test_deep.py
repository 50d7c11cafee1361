"""Which deep tests CI takes, simulated over many commits."""

import hashlib

import pytest

from tests.run import deep
from tests.run.deep import UNITS, Unit, groups, order
from tests.run.plan import FOLDERS, ROOT, TESTS

CI_BUDGET_S = 10 * 60.0  # MOST_DEEP_MINUTES of .ci/run
COMMITS = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(4_000)]


def unit(name: str, seconds: int) -> Unit:
    return Unit(name, "light", (f"tests/{name}.py",), seconds)


MADE_UP = tuple(unit(name, seconds) for name, seconds in (("a", 400), ("b", 300), ("c", 120), ("d", 90), ("e", 60), ("f", 20)))


def taken(units, budget_s: float, factor: float, commit: str) -> list[str]:
    """What `run` takes when every unit costs what the table says."""
    names, spent_s = [], 0.0
    for each in order(units, budget_s, factor, commit):
        if spent_s + each.seconds * factor <= budget_s:
            spent_s += each.seconds * factor
            names.append(each.name)
    return names


def test_every_file_with_deep_tests_stands_in_one_unit_of_its_environment() -> None:
    listed = [path for each in UNITS for path in each.files()]
    assert len(listed) == len(set(listed))
    folders = [folder for folder in FOLDERS if folder not in ("unit", "contract")]
    files = {path: path.read_text(encoding="utf-8") for folder in folders for path in (TESTS / folder).rglob("test_*.py")}
    marked = {path.relative_to(ROOT).as_posix(): "mark.ml" in text for path, text in files.items() if "mark.deep" in text}
    assert marked.keys() == set(listed), "tests/run/deep.py: UNITS lists the files with tests marked deep, with the seconds that they take"
    assert {path: each.environment == "ml" for each in UNITS for path in each.files()} == marked


def test_names_and_costs_are_such_that_a_run_can_tell_them() -> None:
    assert len({each.lane.name for each in UNITS}) == len(UNITS)
    assert all(each.seconds > 0 and each.lane.name.replace("-", "").isalnum() for each in UNITS)


def test_every_deep_unit_runs_within_a_few_merges() -> None:
    """The chance of a unit in one merge is at least one in the number of groups; five groups: 89 % within 10 merges, 99.5 % within 24."""
    laid = groups(UNITS, CI_BUDGET_S, 1.0)
    assert sum(len(group) for group in laid) == len(UNITS), "a unit alone is longer than CI's budget: split it"
    assert len(laid) <= 5
    runs = [set(taken(UNITS, CI_BUDGET_S, 1.0, commit)) for commit in COMMITS]
    for each in UNITS:
        share = sum(each.name in run for run in runs) / len(runs)
        assert share > 1 / 5 - 0.03, f"{each.name}: in {share:.0%} of merges"
        assert (1 - share) ** 24 < 0.006
        gaps = "".join("x" if each.name in run else "." for run in runs).split("x")
        assert max(map(len, gaps)) < 45, f"{each.name}: the longest of {len(runs)} waits is {max(map(len, gaps))} merges"


def test_a_run_never_plans_more_than_its_budget_and_leaves_nothing_out_that_fits() -> None:
    seconds = {each.name: each.seconds for each in MADE_UP}
    for commit in COMMITS[:200]:
        for factor in (1.0, 1.7):
            names = taken(MADE_UP, 500.0, factor, commit)
            spent_s = factor * sum(seconds[name] for name in names)
            assert spent_s <= 500.0
            assert all(spent_s + factor * seconds[name] > 500.0 for name in seconds if name not in names)


def test_a_dear_unit_is_drawn_as_often_as_its_group_and_not_only_when_it_happens_to_stand_first() -> None:
    laid = groups(MADE_UP, 500.0, 1.0)
    assert [[each.name for each in group] for group in laid] == [["a", "d"], ["b", "c", "e", "f"]]
    share = sum("a" in taken(MADE_UP, 500.0, 1.0, commit) for commit in COMMITS) / len(COMMITS)
    assert 0.47 < share < 0.53


def test_one_commit_always_takes_the_same_and_a_slow_machine_what_fits_it() -> None:
    assert taken(MADE_UP, 500.0, 1.0, "c0ffee") == taken(MADE_UP, 500.0, 1.0, "c0ffee")
    assert {name for commit in COMMITS for name in taken(MADE_UP, 500.0, 3.0, commit)} == {"c", "d", "e", "f"}
    assert taken(MADE_UP, 10.0, 1.0, "c0ffee") == []
    assert set(taken(MADE_UP, float("inf"), 3.0, "")) == {each.name for each in MADE_UP}


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The lanes that were run instead of real ones; "broken" fails."""
    lanes: list[str] = []

    def run_phase(phase, extra, *, limit_s):
        (lane,) = phase
        lanes.append(lane.name)
        outcome = deep.Outcome(lane, code=int("broken" in lane.name), seconds=1.0)
        outcome.counts["passed"] += 1
        return [outcome]

    monkeypatch.setattr(deep, "run_phase", run_phase)
    return lanes


def test_the_last_line_says_which_units_ran_and_which_did_not(ran, monkeypatch, capsys) -> None:
    monkeypatch.setattr(deep, "UNITS", (unit("long one", 400), unit("short", 30)))
    assert deep.run([], factor=1.0, budget_minutes=1.0, commit="c0ffee") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "deep tests: 430 s in 2 units, budget 60 s, drawn by commit c0ffee"
    assert said[-1] == "PASSED: 1 passed, 0 failed, 0 skipped in 0 s; deep units run: short (1 of 30 s); not run: long one (400 s)"
    assert ran == ["deep-short"]


def test_named_units_run_alone_and_a_wrong_name_is_said(ran, monkeypatch) -> None:
    monkeypatch.setattr(deep, "UNITS", (unit("broken", 40), unit("fine", 30), unit("other", 30)))
    assert deep.run([], factor=1.0, budget_minutes=None, commit="", names=["other", "fine"]) == 0
    assert ran == ["deep-fine", "deep-other"]
    with pytest.raises(ValueError, match="no unit is called finest; there are broken, fine, other"):
        deep.named(["fine", "finest"])


def test_a_failure_in_one_unit_fails_the_run_and_the_others_still_run(ran, monkeypatch, capsys) -> None:
    monkeypatch.setattr(deep, "UNITS", (unit("broken", 40), unit("fine", 30)))
    assert deep.run([], factor=1.0, budget_minutes=None, commit="") == 1
    assert set(ran) == {"deep-broken", "deep-fine"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: ")
