"""The Triton of tests is started again after the one crash that is Triton's own, and after no other."""

from __future__ import annotations

import pytest

from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from tests import conftest

CRASH = "tritonserver ended with code -6: what():  boost::interprocess::lock_exception (log: triton.log)"


@pytest.fixture
def starts(monkeypatch) -> list[Exception]:
    """What the next starts end in; when none is left, a start succeeds."""
    errors: list[Exception] = []

    def start(*_args: object, **_options: object) -> str:
        if errors:
            raise errors.pop(0)
        return "running"

    monkeypatch.setattr(embedded, "triton_command", lambda *_args, **_options: "tritonserver")
    monkeypatch.setattr(embedded, "EmbeddedServer", start)
    return errors


def _start(tmp_path) -> object:
    return conftest.TritonServer(tmp_path, repository=tmp_path, models=(), env={})._server


def test_it_is_started_again_after_a_crash_over_its_shared_memory_and_says_so(starts, tmp_path):
    starts.append(ConfigurationError(CRASH))
    with pytest.warns(UserWarning, match="a Triton is started again: .*lock_exception"):
        assert _start(tmp_path) == "running"


@pytest.mark.filterwarnings("ignore:a Triton is started again")
@pytest.mark.parametrize(
    "errors", [[CRASH, CRASH], ["tritonserver ended with code 1: model ranker: no such file"]], ids=["twice", "another"]
)
def test_a_second_crash_and_any_other_end_is_an_error(starts, tmp_path, errors):
    starts += [ConfigurationError(error) for error in errors]
    with pytest.raises(ConfigurationError):
        _start(tmp_path)
    assert not starts
