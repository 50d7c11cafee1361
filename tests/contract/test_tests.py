"""Rules that the tests themselves keep: what they may skip for, no repeats until something passes, which marks exclude each other."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from tests.limits import seconds
from tests.run.report import SKIP_REASONS

FILES = sorted(path for path in (REPOSITORY_ROOT / "tests").rglob("*.py"))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call of something with dots in its name, with that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def skip_reasons(path: Path) -> Iterator[str]:
    """The source of what a test says when it skips itself or others."""
    for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
        if name in ("pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.xfail"):
            yield ast.unparse(call)


def test_nothing_is_skipped_but_for_want_of_a_gpu_docker_or_kafka() -> None:
    wrong = [f"{path.relative_to(REPOSITORY_ROOT)}: {reason}" for path in FILES for reason in skip_reasons(path)]
    assert [line for line in wrong if not SKIP_REASONS.search(line.partition(": ")[2])] == []


@pytest.mark.parametrize("name", ["flaky", "rerun", "reruns"])
def test_no_test_is_repeated_until_it_passes(name: str) -> None:
    assert [path.name for path in FILES if re.search(rf"mark\.{name}\b", path.read_text(encoding="utf-8"))] == []


def test_what_runs_without_company_is_of_the_light_environment() -> None:
    """The lane of these tests (tests/run/plan.py) runs in the light environment only."""
    alone = [path for path in FILES if re.search(r"pytest\.mark\.(alone|e2e)\b", path.read_text(encoding="utf-8"))]
    assert [path.name for path in alone if "pytest.mark.ml" in path.read_text(encoding="utf-8")] == []


def collected(environment: Literal["light", "ml"], marker: str) -> list[str]:
    """Collect the tests of an environment in a process of its own, whose sets have an order of their own; return their names."""
    python = Environments.of_repository().python(environment)
    command = [str(python), "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", marker, "tests"]
    variables = os.environ | {"PYTHONHASHSEED": "random"}
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, env=variables, capture_output=True, text=True, timeout=seconds(300), check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_test_of_the_light_environment_is_collected_by_the_same_name_at_any_time(request: pytest.FixtureRequest) -> None:
    """A conftest, or a module without the mark, that imports what the other environment has ends a whole lane; so does a name that
    holds a time, an address or the order of a set, for the processes of a lane must collect the same names."""
    later = set(collected("light", "not ml"))
    here = [item.nodeid for item in request.session.items if item.get_closest_marker("ml") is None]
    assert [name for name in here if name not in later] == []


def test_every_test_of_the_ml_environment_is_collected() -> None:
    assert collected("ml", "ml")
