"""Which networks find an interaction that is planted in wide data: those in which a column of the request meets one of the item."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from loadtests.metrics import auc
from loadtests.wide.__main__ import main as wide
from loadtests.wide.world import ITEM_CATEGORIES, World, spec_of
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import NETWORK_NAMES
from services.trainer.batch import BatchConfig, replay, replay_order
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.learner import LearnerConfig
from services.trainer.passes import Passes, Task
from services.trainer.train import attributes_of

pytestmark = [pytest.mark.ml, pytest.mark.deep, pytest.mark.timeout(1200)]

ROWS = 22_000
MAX_ROWS = 2_000
# Its sides meet in the dot product of a user's and an item's own rows only, which columns do not enter.
CANNOT = ("two_tower",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    assert wide(["write", str(path), "--rows", str(ROWS)]) == 0
    return path


@pytest.mark.parametrize("network", NETWORK_NAMES)
def test_a_planted_interaction_is_found_by_the_networks_that_can_in_tables_of_bounded_size(folder, network):
    torch.set_num_threads(1)
    spec = FeatureSpec.parse(spec_of(World(ROWS), network, max_rows=MAX_ROWS))
    options = ReadOptions(answer_window_ms=0, items=str(folder / "items.parquet"))
    history, last = (read_history(str(folder / f"{name}.parquet"), spec, options) for name in ("impressions", "last"))
    items, config = list(history.categories), BatchConfig(active_users=0)
    task = Task(
        spec=spec, events=history.interactions, categories=history.categories, item_ids=items, attributes=attributes_of(spec, history)
    )
    trained = Passes(task, config, LearnerConfig.of(spec), say=lambda _: None).run()
    later = replay(spec, replay_order(last.interactions, config), items, trained.states, config, 1, first=len(history.interactions))
    said = np.asarray([scores[0, 0] for scores in trained.learner.score(list(later))], np.float64)
    clicks = np.asarray([float(event.kind == "click") for event in last.interactions])
    without = pq.read_table(folder / "last.parquet")["without"].to_numpy()
    found = auc(clicks, said) - auc(clicks, without)
    print(f"{network}: AUC {auc(clicks, said):.3f}, {found:+.3f} against the truth without the interaction")
    assert found > 0.05 if network not in CANNOT else found < 0.02
    assert said.sum() / clicks.sum() == pytest.approx(1.0, abs=0.2)
    for name, table in trained.learner.tables.items():
        assert len(table) <= (1 + 1 / 8) * MAX_ROWS or name in ("user", *ITEM_CATEGORIES)
    assert len(trained.learner.tables["c19"]) > MAX_ROWS / 2
