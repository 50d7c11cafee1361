"""The contracts: buf's rules, no breaking change against main, and committed code that equals what the protos give."""

import shutil
import subprocess
from pathlib import Path

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.limits import seconds


def make(target: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # The environment counts as set up: a test must never set up the real one from a copy.
    return subprocess.run(
        ["make", target, "LIGHT_STAMP=.venv/light/bin/python"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what `make protos-check` looks at, with the same environment, outside git."""
    for name in ("Makefile", "buf.yaml", "requirements-light.lock", "requirements-ml.lock"):
        shutil.copy(REPOSITORY_ROOT / name, tmp_path / name)
    shutil.copytree(REPOSITORY_ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(REPOSITORY_ROOT / ".venv")
    return tmp_path


def test_protos_check_passes() -> None:
    done = make("protos-check", REPOSITORY_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_protos_check_notices_generated_code_that_is_out_of_date(copy: Path) -> None:
    proto = next(copy.glob("protos/tunemesh/router/v1/*.proto"))
    proto.write_text(proto.read_text().replace("message RecommendRequest {", "message RecommendRequest {\n  int64 added_field = 99;"))
    done = make("protos-check", copy)
    assert done.returncode != 0
    assert "protos/gen differs from the protos: run make protos" in done.stderr
    assert make("protos", copy).returncode == 0
    assert make("protos-check", copy).returncode == 0


def test_protos_check_notices_what_buf_forbids(copy: Path) -> None:
    proto = next(copy.glob("protos/tunemesh/router/v1/*.proto"))
    proto.write_text(proto.read_text().replace("message RecommendRequest {", "message RecommendRequest {\n  int64 AddedField = 99;"))
    done = make("protos-check", copy)
    assert done.returncode != 0
    assert "AddedField" in done.stdout + done.stderr


def commit_as_main(folder: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init", "-b", "main")
    git("add", "protos", "buf.yaml")
    git("commit", "-m", "before")


def test_protos_check_notices_a_breaking_change_against_main(copy: Path) -> None:
    commit_as_main(copy)
    proto = next(copy.glob("protos/tunemesh/router/v1/*.proto"))
    text = proto.read_text()
    assert "string user_id = 1;" in text
    proto.write_text(text.replace("string user_id = 1;", "int64 user_id = 1;", 1))
    assert make("protos", copy).returncode == 0
    done = make("protos-check", copy)
    assert done.returncode != 0
    assert "user_id" in done.stdout + done.stderr
    assert "changed type" in done.stdout + done.stderr


def test_protos_check_keeps_the_package_names_of_go_and_java_once_main_has_them(copy: Path) -> None:
    commit_as_main(copy)
    for proto in copy.glob("protos/tunemesh/router/v1/*.proto"):
        proto.write_text(proto.read_text().replace('java_package = "tunemesh.router.v1"', 'java_package = "elsewhere.router.v1"'))
    assert make("protos", copy).returncode == 0
    done = make("protos-check", copy)
    assert done.returncode != 0
    assert 'option "java_package" changed' in done.stdout + done.stderr


def test_protos_check_takes_the_first_package_names_for_no_change(copy: Path) -> None:
    protos = {proto: proto.read_text() for proto in copy.glob("protos/tunemesh/**/*.proto")}
    for proto, text in protos.items():
        proto.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("option ")))
    commit_as_main(copy)
    for proto, text in protos.items():
        proto.write_text(text)
    done = make("protos-check", copy)
    assert done.returncode == 0, done.stdout + done.stderr
