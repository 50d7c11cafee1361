import json
import sys

import pytest

from tests import steady
from tests.steady import is_steady, read_output

GOOD = "speed factor 1.25: 5000 rounds/s alone\n...\nPASSED: 2212 passed, 0 failed, 3 skipped in 480 s\n"


def run(text: str, *, code: int = 0, number: int = 1):
    return read_output(text, number=number, is_loaded=False, seconds=481.0, code=code)


def test_the_verdict_and_the_factor_are_read_from_the_output() -> None:
    found = run(GOOD)
    assert (found.verdict, found.passed, found.failed, found.skipped, found.speed_factor) == ("PASSED", 2212, 0, 3, 1.25)
    assert found.is_good


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (GOOD.replace("PASSED", "FAILED").replace("0 failed", "1 failed"), 1),
        (GOOD, 2),
        ("make: *** no rule\n", 2),
        (GOOD.replace("2212 passed", "0 passed"), 0),
    ],
)
def test_a_run_that_did_not_pass_is_not_good(text: str, code: int) -> None:
    assert not run(text, code=code).is_good
    assert not is_steady([run(GOOD), run(text, code=code)])


def test_runs_that_pass_different_numbers_of_tests_are_not_steady() -> None:
    assert is_steady([run(GOOD), run(GOOD)])
    assert not is_steady([run(GOOD), run(GOOD.replace("2212", "2211"))])
    assert not is_steady([])


def test_every_run_is_recorded_and_the_last_ones_beside_a_load(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(steady, "FOLDER", tmp_path)
    loads: list[int] = []
    real_load = steady.load

    def load(num_processes: int):
        loads.append(num_processes)
        return real_load(num_processes)

    monkeypatch.setattr(steady, "load", load)
    script = tmp_path / "make.py"
    script.write_text(f"print({GOOD!r}, end='')")
    assert steady.main(["--runs", "2", "--loaded", "1", "--command", f"{sys.executable} {script}"]) == 0
    record = json.loads((tmp_path / "steady.json").read_text())
    assert record["is_steady"] and [each["is_loaded"] for each in record["runs"]] == [False, False, True]
    assert len(loads) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "STEADY"
    script.write_text("raise SystemExit(1)")
    assert steady.main(["--runs", "1", "--loaded", "0", "--command", f"{sys.executable} {script}"]) == 1
