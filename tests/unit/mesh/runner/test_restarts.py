"""What follows when a process of the mesh ends."""

from pathlib import Path
from typing import Any

import pytest

from services.mesh.runner.plan import Process, Ready
from services.mesh.runner.restarts import Backoff, Final, after_exit, last_words


def process(**fields: Any) -> Process:
    values = {"name": "one", "argv": ("one",), "env": {}, "cwd": Path("/"), "ready": Ready(kind="alive"), "ports": {}, "depends_on": {}}
    return Process(**{**values, "restart": "always", "stop_grace_s": 1.0, **fields})


@pytest.mark.parametrize("restart", ["always", "unless-stopped", "on-failure"])
@pytest.mark.parametrize("code", [1, -9])
def test_a_service_that_dies_is_started_again(restart: str, code: int) -> None:
    assert after_exit(process(restart=restart), code, "Segmentation fault") is None


@pytest.mark.parametrize(("restart", "expected"), [("no", Final("done")), ("on-failure", Final("done")), ("always", None)])
def test_a_job_that_ends_well_is_done_and_a_service_that_does_is_started_again(restart: str, expected: Final | None) -> None:
    assert after_exit(process(restart=restart), 0, "") == expected


def test_a_job_that_fails_says_how_and_with_which_words() -> None:
    assert after_exit(process(restart="no"), -9, "loading") == Final("failed", "was ended by SIGKILL: loading")


@pytest.mark.parametrize("code", [1, 2])
def test_a_configuration_error_is_not_tried_again(code: int) -> None:
    said = last_words("loading\nconfiguration error: PORT=x is no port\\n in model.py\nUnloading models\n")
    assert said == "configuration error: PORT=x is no port"
    assert after_exit(process(), code, said) == Final("failed", said)


def test_whoever_is_killed_after_a_configuration_error_is_started_again() -> None:
    assert after_exit(process(), -9, "configuration error: an old one") is None


def test_the_exit_code_of_a_bad_configuration_needs_no_words() -> None:
    assert after_exit(process(), 2, "(no output)") == Final("failed", "(no output)")


def test_a_broker_whose_log_was_in_memory_stays_down() -> None:
    final = after_exit(process(in_memory_broker=True), -9, "")
    assert final is not None
    assert final.state == "failed"
    assert "its log was in memory and is lost" in final.message


def test_pauses_double_up_to_their_limit_and_begin_anew_after_a_life_that_lasted() -> None:
    backoff = Backoff(initial_s=0.5, max_s=3.0, reset_s=30.0)
    assert [backoff.pause_s(1.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert [backoff.pause_s(31.0), backoff.pause_s(1.0)] == [0.5, 1.0]
