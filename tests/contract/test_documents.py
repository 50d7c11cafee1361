"""What the pages say exists: each path, command, module, setting and topic that a page names, and the index of decisions."""

from __future__ import annotations

import argparse
import re
import subprocess
from functools import cache
from pathlib import PurePosixPath

import pytest
import yaml

from loadtests.demo import llm, ranker
from services.common.events.topics import ALL
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.__main__ import _parser
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.settings_list import settings_of
from tests import follow_newcomer
from tests.follow_readme import client_code, commands

# What runs and builds make, and what a reader has; a page may name it although a fresh clone has none of it.
MADE = (
    "build/",
    ".venv/",
    "application/",
    "gen/",
    "tunemesh/",
    "logs/",
    "logs.previous/",
    "volumes/",
    "volumes.previous/",
    "my_",
    "example.py",
    "events.parquet",
    "shop/",
)
CODE = re.compile(r"`([^`\n]+)`|\]\(([^)#\n]+)\)|^ {4}(.+)$", re.MULTILINE)
PATH = re.compile(r"(?<![\w./$-])((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|yaml|yml|toml|proto|sh|pbtxt|lock))(?![\w/…*])")
PLACEHOLDER = re.compile(r"\b(?:NAME|TASK|TARGET|FOLDER|FILE|HOST|ARTIFACTS|LABEL|vN)\b|[<>*$…{}]")


@cache
def pages() -> tuple[str, ...]:
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True).stdout.split()
    return tuple(page for page in tracked if page != "CHANGELOG.md")


@cache
def text_of(page: str) -> str:
    return (REPOSITORY_ROOT / page).read_text(encoding="utf-8")


def code_in(page: str) -> list[str]:
    """Return what the page sets in code, links to, or indents as code."""
    return [next(group for group in found.groups() if group) for found in CODE.finditer(text_of(page))]


def created_by(page: str) -> set[str]:
    """Return the files that the page has its reader make (`path`, new:), and their folders: CONTRIBUTING.md adds things as examples."""
    files = set(re.findall(r"`([^`]+)`, new:", text_of(page)))
    files |= {file.replace("protos/", "protos/gen/", 1) for file in files if file.startswith("protos/")}
    return files | {parent.as_posix() + "/" for file in files for parent in PurePosixPath(file).parents}


@cache
def variables() -> frozenset[str]:
    """Every setting of the mesh, and every variable that code or compose reads by its whole name."""
    services = load_compose(REPOSITORY_ROOT / "docker-compose.yml", {}).services.values()
    declared = {setting.variable for _, settings in settings_of(services) for setting in settings}
    command = ["git", "grep", "-ohE", r"\b(TUNEMESH|KAFKA|MLFLOW|OTEL)_[A-Z0-9_]+", "--", "*.py", "*.yml", "Makefile", ".ci"]
    return frozenset(
        declared | set(subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True).stdout.split())
    )


def exists(page: str, path: str) -> bool:
    """Whether a path is there: from the root, from the page's folder, or as a file of a folder below the page's."""
    here = (REPOSITORY_ROOT / page).parent
    return any((base / path).exists() for base in (REPOSITORY_ROOT, here)) or ("/" not in path and any(here.rglob(path)))


def missing_paths(page: str) -> list[str]:
    missing = []
    for code in code_in(page):
        if "://" in code:
            continue
        for path in PATH.findall(code):
            known = path.removeprefix("./").startswith(MADE) or PLACEHOLDER.search(path) or not re.search(r"[a-z]", path)
            if not known and path not in created_by(page) and not exists(page, path.rstrip(".")):
                missing.append(path)
    return missing


@pytest.mark.parametrize("page", pages())
def test_every_path_that_a_page_names_is_there(page: str) -> None:
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", pages())
def test_every_setting_that_a_page_names_is_declared(page: str) -> None:
    named = set(re.findall(r"\b(?:TUNEMESH|KAFKA|MLFLOW|OTEL)_[A-Z0-9_]*[A-Z0-9]\b(?!_)", text_of(page)))
    prefixes = set(re.findall(r"\b(TUNEMESH_[A-Z_]+_)(?:…|`)", text_of(page)))
    made = {PurePosixPath(file).parent.name.upper() for file in created_by(page) if file.endswith("settings.py")}
    unknown = named - variables() - {prefix.rstrip("_") for prefix in prefixes}
    assert {name for name in unknown if not any(name.startswith(f"TUNEMESH_{service}_") for service in made)} == set()
    assert [prefix for prefix in prefixes if not any(variable.startswith(prefix) for variable in variables())] == []


@pytest.mark.parametrize("page", pages())
def test_every_module_that_a_page_runs_is_there(page: str) -> None:
    modules = re.findall(r"-m ((?:services|streams|loadtests|tests)[\w.]*)", text_of(page))
    paths = [REPOSITORY_ROOT / module.rstrip(".").replace(".", "/") for module in modules]
    missing = [path for path in paths if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()]
    made = created_by(page)
    assert [str(path) for path in missing if f"{path.relative_to(REPOSITORY_ROOT).as_posix()}/" not in made] == []


@pytest.mark.parametrize("page", pages())
def test_every_make_target_that_a_page_names_is_there(page: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for code in code_in(page) for target in re.findall(r"(?:^|[ =&])make ([a-z][a-z-]*)", code)}
    assert named - targets == set()


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: sub for action in actions for name, sub in action.choices.items()}


@pytest.mark.parametrize("page", pages())
def test_every_command_that_a_page_names_is_there(page: str) -> None:
    """`tunemesh dlq list`: each word as far as commands go."""
    wrong = []
    for code in code_in(page):
        for words in re.findall(r"(?<![\w./:-])(?<!require )tunemesh ([a-z][a-z ]*)", code):
            known = commands_of(_parser())
            for word in words.split():
                if not known:
                    break
                if word not in known:
                    wrong.append(f"tunemesh {words}")
                    break
                known = commands_of(known[word])
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_every_topic_that_a_page_names_is_in_the_table(page: str) -> None:
    topics = {topic.name for topic in ALL} | {topic.dlq for topic in ALL}
    named = {code for code in code_in(page) if re.fullmatch(r"[a-z]+(?:\.[a-z]+)*\.v\d", code)}
    packages = {code for code in named if code.startswith("tunemesh.")}
    assert named - topics - packages - {"grpc.health.v1"} == set()
    assert [name for name in packages if not (REPOSITORY_ROOT / "protos" / name.replace(".", "/")).is_dir()] == []


def test_the_front_page_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 130


def test_the_front_page_has_two_commands_and_ten_lines_of_client_code() -> None:
    """tests/follow_readme.py runs them; here is only that it finds them."""
    page = text_of("README.md")
    assert commands(page) == ["make demo", "make test"]
    code = client_code(page)
    assert 0 < len([line for line in code.splitlines() if line.strip()]) <= 10
    compile(code, "README.md", "exec")


def test_the_newcomers_page_has_at_most_ten_commands_a_spec_and_client_code() -> None:
    """tests/follow_newcomer.py runs them."""
    page = text_of(follow_newcomer.PAGE)
    typed = follow_newcomer.commands(page)
    assert typed[0] == "make setup" and typed[-1] == "make down" and len(typed) <= follow_newcomer.MAX_COMMANDS
    files = follow_newcomer.new_files(page)
    spec = FeatureSpec.parse(yaml.safe_load(files["shop/spec.yaml"]))
    assert {one.side for one in spec.plan.wanted} >= {"user", "item"}
    compile(files["shop/ask.py"], "shop/ask.py", "exec")
    assert f"({follow_newcomer.PAGE}#" in text_of("README.md")


def test_make_starts_the_halves_of_the_mesh_that_the_demo_starts() -> None:
    text = text_of("Makefile")
    halves = {name: set(services.split()) for name, services in re.findall(r"^PART_(\w+) := (.+)$", text, re.MULTILINE)}
    assert halves["ranker"] == set(ranker.SERVICES)
    # The demo's also learns of rankings and shows its runs; a mesh that answers needs neither.
    assert halves["llm"] == set(llm.SERVICES) - {"trainer", "mlflow", "quality"}


def test_the_index_of_decisions_names_each_one_where_it_stands() -> None:
    """ARCHITECTURE.md numbers the decisions, in order; each number stands once, in the page that the index names.

    A number may be missing: it is taken when work begins, and not all of that lands.
    """
    rows = re.findall(r"^\| (D\d+) \| (.+?) \| \[.+?\]\((.+?)\) \|$", text_of("ARCHITECTURE.md"), re.MULTILINE)
    numbers = [int(number[1:]) for number, _, _ in rows]
    assert numbers == sorted(set(numbers)) and rows
    standing = {number: page for page in pages() for number in re.findall(r"^(?:- )?\*\*(D\d+)\. ", text_of(page), re.MULTILINE)}
    assert {number: page for number, _, page in rows} == standing


def test_a_decision_has_a_number() -> None:
    """A bold bullet with a date, or in a section of decisions."""
    unnumbered = re.compile(r"^- \*\*(?!D\d+\. )(.+?)\*\*(.*)$", re.MULTILINE)
    found = []
    for page in pages():
        for section in re.split(r"^## ", text_of(page), flags=re.MULTILINE):
            is_decisions = section.startswith("Decisions\n")
            found += [(page, title) for title, rest in unnumbered.findall(section) if is_decisions or re.match(r" \(20\d\d-\d\d", rest)]
    assert found == []
