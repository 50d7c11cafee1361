"""`make demo PART=ranker`, whole: what learning from 20,000 live ratings gains, and that nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.demo_run import DemoRun, learned_once_and_for_all

pytestmark = [pytest.mark.deep, pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1600)]

NUM_EVENTS = 20_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with DemoRun(tmp_path_factory.mktemp("demo"), "--part", "ranker", sample_ratio=0.02) as run:
        return run.report(limit_s=1500)


def test_every_event_is_replayed_and_learned_once(report: dict[str, Any]) -> None:
    assert report["events_replayed"] >= NUM_EVENTS
    learned_once_and_for_all(report)


@pytest.mark.parametrize("metric", ["like_auc", "interact_ndcg10"])
@pytest.mark.parametrize("opponent", ["vs_frozen", "vs_counters"])
def test_learning_gains_by_an_interval_above_zero(report: dict[str, Any], metric: str, opponent: str) -> None:
    assert report["gain"][metric][opponent]["low"] > 0, report["gain"]
