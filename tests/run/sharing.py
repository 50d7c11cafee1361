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
SECONDS: dict[str, int] = {}
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


def unit_of(node_id: str) -> str:
    """Return the name of the group that a test belongs to: its file, or itself."""
    path = node_id.split("::", 1)[0]
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
