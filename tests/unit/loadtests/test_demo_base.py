"""When a kept base is used again."""

import hashlib
import json
from pathlib import Path

import pytest

from loadtests.demo.base import is_fresh


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A tree with two modules, and a base that was trained with both."""
    for name in ("learner.py", "labels.py"):
        (tmp_path / name).write_text(f"# {name}")
    sources = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("learner.py", "labels.py")}
    base = tmp_path / "base"
    base.mkdir()
    (base / "manifest.json").write_text(json.dumps({"metadata": {"sources": sources}}))
    return base


def test_a_base_is_fresh_while_every_module_of_its_training_is_unchanged(kept: Path) -> None:
    assert is_fresh(kept, kept.parent)


def test_a_base_is_stale_when_a_module_of_its_training_changed(kept: Path) -> None:
    (kept.parent / "labels.py").write_text("# other labels")
    assert not is_fresh(kept, kept.parent)


def test_a_base_is_stale_when_a_module_of_its_training_is_gone(kept: Path) -> None:
    (kept.parent / "labels.py").unlink()
    assert not is_fresh(kept, kept.parent)


def test_a_base_that_names_no_modules_or_is_not_there_is_stale(kept: Path) -> None:
    (kept / "manifest.json").write_text(json.dumps({"metadata": {}}))
    assert not is_fresh(kept, kept.parent)
    assert not is_fresh(kept.parent / "absent", kept.parent)
