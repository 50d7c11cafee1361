"""Plugin of the lanes with workers: which tests stay together on one worker, and which come first.

Tests of a file share a worker where they share a started server (a fixture of module scope) or are quick; others go to whichever worker
is free. Long files begin first, so that none is left over for the end. Loaded by `-p tests.run.sharing`, in the controller and the workers.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.run.plan import ROOT

# Seconds that these files take on the reference machine (`python -m tests.run` prints the slowest); the longest begin first.
SECONDS: dict[str, int] = {
    "tests/integration/llm/test_gate_of_tunes.py": 50,
    "tests/integration/llm/test_llm_process.py": 20,
    "tests/integration/streams/test_joiner.py": 80,
    "tests/faults/test_trainer_kill.py": 25,
    "tests/integration/mesh/test_infrastructure_of_the_mesh.py": 45,
    "tests/integration/streams/test_quality.py": 45,
    "tests/faults/test_mapped_tables.py": 40,
    "tests/integration/streams/test_inference.py": 35,
    "tests/integration/tuner/test_tuner_process.py": 35,
    "tests/integration/loadtests/test_load.py": 33,
    "tests/integration/streams/test_features.py": 30,
    "tests/integration/router/test_edge.py": 29,
    "tests/integration/streams/test_curator.py": 27,
    "tests/integration/common/test_kafka.py": 25,
    "tests/integration/recommender/updater/test_updater.py": 23,
    "tests/integration/test_infrastructure.py": 20,
    "tests/integration/mesh/test_runner.py": 20,
    "tests/contract/test_compose.py": 20,
    "tests/integration/trainer/test_kafka_logs.py": 18,
    "tests/integration/trainer/test_trainer_process.py": 15,
    "tests/contract/retriever/test_retriever_service.py": 14,
    "tests/integration/recommender/test_recommender_on_real_parts.py": 11,
    "tests/integration/retriever/test_retriever.py": 10,
    "tests/contract/recommender/test_recommender_service.py": 10,
    "tests/integration/ranker/test_ranker_model.py": 10,
}
_QUICK = ("tests/unit/", "tests/contract/")


@functools.cache
def stays_together(path: str) -> bool:
    """Whether all tests of a file run on one worker.

    Args:
        path: relative to the repository, with slashes.
    """
    if path.startswith(_QUICK):
        return True
    file = ROOT / path
    return 'scope="module"' in file.read_text(encoding="utf-8") if file.exists() else True


@functools.cache
def shares_its_folder(folder: str) -> bool:
    """Whether all tests of a folder run on one worker: they share a server (a fixture of package scope in its conftest.py)."""
    file = ROOT / folder / "conftest.py"
    return file.exists() and 'scope="package"' in file.read_text(encoding="utf-8")


def unit_of(node_id: str) -> str:
    """Return the name of the group that a test belongs to: its folder, its file, or itself."""
    path = node_id.split("::", 1)[0]
    folder = path.rpartition("/")[0]
    if shares_its_folder(folder):
        return folder
    return path if stays_together(path) else node_id


class Sharing(LoadScopeScheduling):
    """xdist's scheduler by scope, with our idea of a scope."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    """Hand xdist the scheduler."""
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""

    def cost(item: pytest.Item) -> int:
        return -SECONDS.get(item.path.relative_to(ROOT).as_posix() if item.path.is_relative_to(ROOT) else "", 0)

    items.sort(key=cost)
