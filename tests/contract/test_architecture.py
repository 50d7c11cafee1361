"""Rules of the house that a reader relies on: imports, the length of files and functions, the wheel, and the tables that README repeats."""

import ast
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from services.common.events.topics import ALL
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from tests.limits import seconds

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_SHARED_LINES = 40
NOT_BY_HAND = ("build", "protos")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY_ROOT / folder).rglob("*.py"))]


def hand_written() -> list[Path]:
    """Return every Python file that somebody wrote and reads: of all folders but hidden ones, builds and generated stubs."""
    folders = [path.name for path in sorted(REPOSITORY_ROOT.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return python_files(*(name for name in folders if name not in NOT_BY_HAND))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    tool = Environments.of_repository().light / "bin" / "lint-imports"
    return subprocess.run([str(tool), "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=seconds(120), check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code, in which a test may break a rule."""
    for path in [REPOSITORY_ROOT / "pyproject.toml", *python_files("services", "streams", "loadtests", "tunemesh_client")]:
        target = tmp_path / path.relative_to(REPOSITORY_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def test_the_import_rules_hold() -> None:
    done = lint_imports(REPOSITORY_ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("services/router/core.py", "import grpc", "Cores are pure"),
        ("services/router/core.py", "from tunemesh.router.v1 import router_service_pb2", "Cores are pure"),
        ("streams/joiner/core.py", "import faust", "Cores are pure"),
        ("services/router/grpc_recommender.py", "from services.recommender import settings", "never each other"),
        ("streams/joiner/partition.py", "from services.trainer import settings", "never each other"),
        ("services/common/platform/ids.py", "from services.router import settings", "never each other"),
        ("streams/partitioned/runtime.py", "from streams.joiner import core", "never each other"),
        ("streams/partitioned/intake.py", "import faust", "Cores are pure"),
        ("services/mesh/runner/plan.py", "from loadtests import metrics", "Nothing that serves imports what loads it"),
        ("services/router/server.py", "import tunemesh_client", "Nothing that serves imports what loads it, or what calls it"),
        ("tunemesh_client/channels.py", "from services.common.platform import grpc_client", "The client stands alone"),
        ("loadtests/demo/ranker.py", "from services.trainer import learner", "The demo and the load go through public doors"),
        ("services/common/events/topics.py", "from services.common.ranker import delta", "events and platform know no domain"),
        ("services/common/platform/kafka.py", "from services.common.language import aliases", "events and platform know no domain"),
        ("services/common/platform/ids.py", "from services.common.events import topics", "platform is the ground"),
        ("services/common/ranker/delta.py", "from services.common.language import aliases", "ranker and language do not know each other"),
        ("services/common/language/aliases.py", "from services.common.ranker import labels", "ranker and language do not know each other"),
        ("services/recommender/core.py", "import torch", "Only who learns, scores or generates imports torch"),
        ("services/retriever/server.py", "import transformers", "Only who learns, scores or generates imports torch"),
        ("services/tuner/adapter_gate.py", "import mlflow", "Cores are pure"),
        ("services/tuner/tune.py", "import vllm", "Only the llm imports vLLM"),
        ("services/llm/server.py", "from services.retriever import settings", "never each other"),
        ("services/llm/server.py", "import aiokafka", "The ml environment"),
        ("services/trainer/worker.py", "import aiokafka", "The ml environment"),
    ],
)
def test_a_planted_violation_breaks_its_rule(copy: Path, file: str, line: str, rule: str) -> None:
    with (copy / file).open("a") as module:
        module.write(f"\n{line}\n")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert re.search(rf"{rule}[^\n]* BROKEN", done.stdout), done.stdout


def test_only_who_learns_or_scores_imports_the_network() -> None:
    """The network brings torch along; the import rule about torch cannot say so, since the network stands in the shared kernel."""
    room = REPOSITORY_ROOT / "services" / "common" / "ranker" / "networks"
    importers = {
        path.relative_to(REPOSITORY_ROOT).parts[:2]
        for path in python_files("services", "streams", "loadtests", "model_repo")
        if "from services.common.ranker.networks." in path.read_text(encoding="utf-8") and path.parent != room
    }
    benches = {("loadtests", "bench_learner"), ("loadtests", "bench_networks.py")}
    assert importers == {("services", "trainer"), ("model_repo", "ranker"), ("loadtests", "demo")} | benches


def test_no_file_is_longer_than_one_idea() -> None:
    lengths = {path.relative_to(REPOSITORY_ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in hand_written()}
    assert {"services/router/generator.py", "tests/contract/test_architecture.py"} <= lengths.keys()
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_its_readers_memory() -> None:
    long = []
    for path in hand_written():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(REPOSITORY_ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def telling_lines(folder: Path) -> Counter[str]:
    """The lines of a package that say something of their own: at least three words, and no comment, import or decorator."""
    lines = (line.strip() for path in folder.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines())
    return Counter(line for line in lines if len(re.findall(r"\w+", line)) >= 3 and not line.startswith(("#", "@", "from ", "import ")))


def test_joiner_and_curator_share_their_runtime_instead_of_repeating_it() -> None:
    joiner, curator = (telling_lines(REPOSITORY_ROOT / "streams" / name) for name in ("joiner", "curator"))
    both = joiner & curator  # as often as a line stands in both
    assert min(joiner.total(), curator.total()) > 5 * MAX_SHARED_LINES  # or nothing was looked at
    assert both.total() <= MAX_SHARED_LINES, "\n".join(both.elements())


def test_no_docstring_only_sends_its_reader_elsewhere() -> None:
    """What overrides a documented method says so by its type (`@override`)."""
    empty = []
    for path in python_files("services", "streams", "loadtests", "model_repo", "tunemesh_client", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if re.fullmatch(r"See (also )?[`\w.:]+\.?", text):
                    empty.append(f"{path.relative_to(REPOSITORY_ROOT)}: {text}")
    assert empty == []


def test_every_package_imports_from_the_wheel(tmp_path: Path) -> None:
    """An editable path hides a file that the wheel lacks; images install the wheel."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY_ROOT),
    ]
    done = subprocess.run(build, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert "tunemesh/py.typed" in names
    assert {path.relative_to(REPOSITORY_ROOT).as_posix() for path in python_files("services", "streams")} <= names
    modules = [
        "services.mesh.__main__",
        "services.common.events.topics",
        "tunemesh.router.v1.router_service_pb2_grpc",
        "tunemesh.events.v1.delta_pb2",
    ]
    installed = tmp_path / "installed"
    script = f"""
import sys
sys.path[:] = [{str(installed)!r}] + [path for path in sys.path if "site-packages" in path or {str(REPOSITORY_ROOT)!r} not in path]
{"".join(f"import {module};" for module in modules)}
print(services.mesh.__file__)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=seconds(60), check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().startswith(str(installed))


def topic_rows() -> dict[str, dict[str, str]]:
    """The rows of the topic table in services/README.md by topic name: the table whose header begins with `topic`."""
    rows: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in (REPOSITORY_ROOT / "services" / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            header = []
        elif cells[0].lower() == "topic":
            header = [cell.lower() for cell in cells]
        elif header and not set(cells[0]) <= set("-: "):
            rows[cells[0]] = dict(zip(header, cells, strict=True))
    return rows


def test_the_topic_table_of_readme_is_the_one_in_code() -> None:
    rows = topic_rows()
    assert set(rows) == {topic.name for topic in ALL}
    for topic in ALL:
        row = rows[topic.name]
        assert (row["key"], row["value"], row["cleanup"]) == (topic.key, topic.value, topic.cleanup)
