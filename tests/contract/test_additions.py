"""The five usual additions, made as CONTRIBUTING.md says in a copy of the tree: what they add works, and few files are touched.

The page is the source: its code blocks are applied here, so page and tree cannot drift apart. What the programs in tests/additions print
is looked at; they run in the copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT, EnvironmentName, Environments

PAGE = REPOSITORY_ROOT / "CONTRIBUTING.md"
COPIED = (
    "services",
    "streams",
    "protos",
    "model_repo",
    "loadtests",
    "tests",
    "tunemesh_client",
    "pyproject.toml",
    "buf.yaml",
    "docker-compose.yml",
)
MAX_FILES = 2
EXAMPLE_KIND_JUDGED = 2
# "`path`:" or "`path`, new:" on a line of its own, then a code block; a block without a path goes on in the same file.
_BLOCK = re.compile(r"(?:^`(?P<path>[\w./-]+)`(?P<new>, new)?:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Change:
    """One code block of the page: the whole of a new file, or lines to add and to remove, with their context."""

    path: str
    is_new: bool
    text: str

    def apply(self, root: Path) -> None:
        """Make the change; the page is out of date when its context is not in the file exactly once."""
        file = root / self.path
        if self.is_new:
            assert not file.exists(), f"CONTRIBUTING.md adds {self.path}, which is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.text)
            return
        lines = self.text.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in (" ", sign)) for sign in "-+")
        content = file.read_text()
        assert content.count(before) == 1, f"CONTRIBUTING.md changes lines that are not in {self.path} exactly once:\n{before}"
        file.write_text(content.replace(before, after))


def walk_through(section: str) -> list[Change]:
    """Return the changes that one section of the page shows."""
    [text] = re.findall(rf"^### {section}\n(.*?)^##", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    changes: list[Change] = []
    for block in _BLOCK.finditer(text):
        change = Change(block["path"] or changes[-1].path, bool(block["new"]), block["text"])
        assert change.is_new == (block["language"] != "diff"), (
            f"CONTRIBUTING.md: {change.path}: a new file is shown whole, a change as diff"
        )
        changes.append(change)
    assert changes, f"CONTRIBUTING.md: section {section!r} shows no code"
    return changes


def make(section: str, tree: Path) -> set[str]:
    """Make the changes of a section; return the files that they touch."""
    changes = walk_through(section)
    for change in changes:
        change.apply(tree)
    return {change.path for change in changes}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree, with the environments of the real one."""
    for name in COPIED:
        source = REPOSITORY_ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / ".venv").symlink_to(REPOSITORY_ROOT / ".venv")
    return tmp_path


def run(tree: Path, *command: str) -> str:
    """Run a command in the tree, on the tree's own code, and return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_", "OTEL_"))}
    env = {**clean, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'protos' / 'gen'}"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(tree: Path, *arguments: str, environment: EnvironmentName = "light") -> str:
    return run(tree, str(Environments.of_repository().python(environment)), *arguments)


def printed_by(program: str, tree: Path, environment: EnvironmentName = "light") -> Any:
    """Return what tests/additions/PROGRAM.py prints in the tree, which is JSON."""
    return json.loads(python(tree, "-m", f"tests.additions.{program}", environment=environment).splitlines()[-1])


def check_tests(tree: Path, *paths: str) -> None:
    """Nobody has to edit the tests of what was added to."""
    python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not ml", *paths)


def test_a_column_is_one_row_that_changes_the_schema_hash(tree: Path) -> None:
    hash_before, before = printed_by("column", tree)
    assert len(make("An online feature column", tree)) <= MAX_FILES
    hash_after, after = printed_by("column", tree)
    assert hash_after != hash_before
    assert after.pop("rated_share") == [0.5, 0.0]
    assert after == before
    check_tests(tree, "tests/unit/services/common/ranker/test_columns.py", "tests/unit/services/common/ranker/test_exposure_block.py")


def test_a_kind_of_feedback_about_answers_is_one_row_from_the_door_to_example_and_metric(tree: Path) -> None:
    assert len(make("A kind of feedback about answers", tree)) <= MAX_FILES
    printed = printed_by("kind", tree)
    assert printed["refusals"] == ["", "feedback[0].value: 4.5 is not 1 to 5", "feedback[0].text: a stars has none"]
    assert printed["example"] == [EXAMPLE_KIND_JUDGED, 0.75, "A week."]
    assert (printed["metrics"]["mean_stars"], printed["metrics"]["feedback"]) == (0.375, 2)
    check_tests(tree, "tests/unit/services/common/events", "tests/unit/services/feedback_collector/test_core.py")


def test_a_recall_channel_is_one_file_and_one_row_and_its_proposals_come_out(tree: Path) -> None:
    assert len(make("A recall channel", tree)) <= MAX_FILES
    names, known, unknown = printed_by("channel", tree)
    assert names == ["embedding", "similar", "favourite", "popular", "fresh"]
    assert known == {"new drama": ["favourite:Drama", "cold_start"], "new comedy": ["cold_start"]}
    assert set(unknown) == {"new drama", "new comedy", "seen"}
    assert not any(reason.startswith("favourite") for reasons in unknown.values() for reason in reasons)
    check_tests(tree, "tests/unit/services/recommender/test_core.py", "tests/unit/services/recommender/channels")


@pytest.mark.ml
def test_another_network_is_one_line_of_the_feature_spec_and_refuses_the_artifacts_of_the_one_before(tree: Path) -> None:
    hash_before, weights_before = printed_by("network", tree, "ml")
    assert len(make("A network", tree)) == 1
    hash_after, weights_after = printed_by("network", tree, "ml")
    assert hash_after != hash_before
    added = set(weights_after) - set(weights_before)
    assert set(weights_before) < set(weights_after) and all(".cross.2." in name for name in added)


def test_a_service_is_a_package_a_contract_and_a_block_of_compose(tree: Path) -> None:
    rules_before = (tree / "pyproject.toml").read_text()
    touched = make("A service", tree)
    [proto] = [path for path in touched if path.endswith(".proto")]
    python(
        tree, "-m", "grpc_tools.protoc", "-I", "protos", *(f"--{kind}_out=protos/gen" for kind in ("python", "pyi", "grpc_python")), proto
    )
    tools = Environments.of_repository().light / "bin"
    run(tree, str(tools / "buf"), "lint")
    run(tree, str(tools / "lint-imports"), "--no-cache")
    run(tree, str(tools / "ruff"), "check", "services/glossary")
    assert "TUNEMESH_GLOSSARY_PORT" in python(tree, "-m", "services.mesh", "settings")
    meaning, refusal, exit_code = printed_by("service", tree)
    assert meaning.startswith("A LoRA")
    assert refusal == "NOT_FOUND: word: 'riddle' is not explained; known are adapter, base"
    assert exit_code == 0
    assert (tree / "pyproject.toml").read_text() == rules_before
    check_tests(tree, "tests/contract/test_compose.py", "-k", "glossary or complete or declared or defaults or shared or health or schema")
