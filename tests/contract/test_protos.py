"""The contracts: buf's rules, no breaking change against what main had before, and committed code that equals what the protos give."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.limits import seconds


def make(target: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # The environment counts as set up: a test must never set up the real one from a copy.
    return subprocess.run(
        ["make", target, "LIGHT_STAMP=.venv/light/bin/python", *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds(120),
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what `make protos-check` looks at, with the same environment, outside git."""
    for path in (REPOSITORY_ROOT / "Makefile", REPOSITORY_ROOT / "buf.yaml", *REPOSITORY_ROOT.glob("requirements-*.lock")):
        shutil.copy(path, tmp_path / path.name)
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


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "protos", "buf.yaml")
    git(folder, "commit", "-m", message)


def commit_as_main(folder: Path) -> None:
    git(folder, "init", "-b", "main")
    commit(folder, "before")


def break_protos(folder: Path) -> None:
    proto = next(folder.glob("protos/tunemesh/router/v1/*.proto"))
    text = proto.read_text()
    assert "string user_id = 1;" in text
    proto.write_text(text.replace("string user_id = 1;", "int64 user_id = 1;", 1))
    assert make("protos", folder).returncode == 0


def test_protos_check_notices_a_breaking_change_that_is_not_committed_yet(copy: Path) -> None:
    commit_as_main(copy)
    break_protos(copy)
    assert_broken(copy)


def assert_broken(folder: Path) -> None:
    done = make("protos-check", folder)
    assert done.returncode != 0
    assert "user_id" in done.stdout + done.stderr
    assert "changed type" in done.stdout + done.stderr


def test_protos_check_notices_a_breaking_change_in_a_fresh_clone_of_main_where_it_was_just_merged(copy: Path) -> None:
    commit_as_main(copy)
    break_protos(copy)
    commit(copy, "a break")
    git(copy, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert_broken(copy)


def test_protos_check_notices_a_breaking_change_under_later_commits_that_came_to_main_with_it(copy: Path) -> None:
    commit_as_main(copy)
    git(copy, "update-ref", "-m", "fetch", "--create-reflog", "refs/remotes/origin/main", "HEAD")
    break_protos(copy)
    commit(copy, "a break")
    for number in range(2):
        (copy / "protos" / "README.txt").write_text(f"later {number}")
        commit(copy, "something else")
    git(copy, "update-ref", "-m", "fetch", "refs/remotes/origin/main", "HEAD")
    assert_broken(copy)
    shutil.rmtree(copy / ".git" / "logs")  # a fresh clone
    assert_broken(copy)
    assert make("protos-check", copy, "PROTOS_DEPTH=1").returncode == 0


def test_protos_check_compares_a_branch_with_where_it_left_main(copy: Path) -> None:
    commit_as_main(copy)
    git(copy, "checkout", "-b", "branch")
    break_protos(copy)
    commit(copy, "a break")
    (copy / "protos" / "README.txt").write_text("later")
    commit(copy, "something else")
    assert_broken(copy)
    done = make("protos-check", copy, "PROTOS_AGAINST=HEAD^")
    assert done.returncode == 0, done.stdout + done.stderr


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


STATED = (
    'FIELD_SAME_TYPE | tunemesh/router/v1/router_service.proto | Field "1" with name "user_id" on message "{}" changed type '
    'from "string" to "int64". | {}\n'
)
MEANT = STATED.format("RecommendRequest", "nobody calls it yet")


def state(folder: Path, *lines: str) -> None:
    with (folder / "protos" / "breaks.txt").open("a") as file:
        file.writelines(lines)


def assert_refused(folder: Path, said: str) -> None:
    done = make("protos-check", folder)
    assert done.returncode != 0
    assert said in done.stderr, done.stdout + done.stderr


def test_a_break_that_is_meant_is_landed_and_anything_else_is_refused(copy: Path) -> None:
    commit_as_main(copy)
    git(copy, "checkout", "-b", "branch")
    break_protos(copy)
    assert_refused(copy, STATED.format("RecommendRequest", "REASON").strip())
    state(copy, MEANT)
    done = make("protos-check", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 breaking change(s) are meant" in done.stdout
    proto = next(copy.glob("protos/tunemesh/router/v1/*.proto"))
    whole = proto.read_text()
    proto.write_text(whole.replace("string user_id = 1;", "int64 user_id = 1;", 1))  # of the next message
    assert_refused(copy, STATED.format("GenerateRequest", "REASON").strip())
    proto.write_text(whole)
    commit(copy, "a meant break")
    # Landed: main's check in a fresh clone, and that of a branch that leaves main behind the break.
    git(copy, "update-ref", "refs/remotes/origin/main", "HEAD")
    shutil.rmtree(copy / ".git" / "logs")
    assert make("protos-check", copy).returncode == 0
    (copy / "protos" / "README.txt").write_text("later")
    commit(copy, "something else")
    assert make("protos-check", copy).returncode == 0
    done = make("protos-check", copy, "PROTOS_DEPTH=1")
    assert done.returncode != 0 and "take it out" in done.stderr, "as far back as any check looks there is no such change any more"


def test_a_statement_of_what_is_no_break_is_refused(copy: Path) -> None:
    commit_as_main(copy)
    state(copy, MEANT)
    assert_refused(copy, "states what is no change")


@pytest.fixture(scope="module")
def breaks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("breaks", REPOSITORY_ROOT / "protos" / "breaks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([MEANT, "\n", "# a comment\n", MEANT], "protos/breaks.txt:4: the change stands above already"),
        ([STATED.format("M", "REASON")], "protos/breaks.txt:1: say why the change is meant"),
        ([STATED.format("M", " ")], "protos/breaks.txt:1: say why the change is meant"),
        (["FIELD_SAME_TYPE | a.proto | because\n"], "is not RULE | FILE | MESSAGE | REASON"),
        (["FIELD_SAME_TYPE | a.proto |  | because\n"], "is not RULE | FILE | MESSAGE | REASON"),
        (["whatever\n"], "is not RULE | FILE | MESSAGE | REASON"),
    ],
)
def test_a_line_that_states_no_break_or_no_reason_is_refused_by_its_number(breaks: ModuleType, lines: list[str], said: str) -> None:
    with pytest.raises(breaks.Refused) as caught:
        breaks.stated(lines)
    assert said in str(caught.value)


def test_the_statement_of_this_tree_can_be_read(breaks: ModuleType) -> None:
    breaks.stated((REPOSITORY_ROOT / breaks.STATEMENT).read_text(encoding="utf-8").splitlines())
