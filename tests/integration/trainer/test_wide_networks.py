"""Which networks find an interaction that is planted in wide data: those in which a column of the request meets one of the item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from loadtests.metrics import auc
from loadtests.wide.__main__ import main as wide
from loadtests.wide.world import World, spec_of
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import NETWORK_NAMES
from services.common.ranker.networks.output_bias import begin_at
from services.trainer.batch import FeatureStates, replay
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.label_odds import log_odds
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.replay_order import BatchConfig, replay_order
from services.trainer.train import attributes_of

pytestmark = [pytest.mark.ml, pytest.mark.deep, pytest.mark.timeout(1200)]

ROWS, MAX_ROWS = 22_000, 2_000
# Its sides meet in the dot product of a user's and an item's own rows only, which columns do not enter.
CANNOT = ("two_tower",)


class Recorded(NamedTuple):
    """The samples of wide data, made once for all networks, and what is known of the last 2,000 of them."""

    learned: Sequence[SampleGroup]
    later: Sequence[SampleGroup]
    log_odds_T: np.ndarray
    clicks: np.ndarray
    without: np.ndarray


def spec_with(network: str) -> FeatureSpec:
    return FeatureSpec.parse(spec_of(World(ROWS), network, max_rows=MAX_ROWS))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    folder, spec, config = tmp_path_factory.mktemp("wide"), spec_with("dcn_din"), BatchConfig()
    assert wide(["write", str(folder), "--rows", str(ROWS)]) == 0
    options = ReadOptions(answer_window_ms=0, items=str(folder / "items.parquet"))
    history, last = (read_history(str(folder / f"{name}.parquet"), spec, options) for name in ("impressions", "last"))
    items, states = list(history.categories), FeatureStates(spec, history.categories, attributes_of(spec, history))
    learned = list(replay(spec, replay_order(history.interactions, config), items, states, config, 0))
    later = list(replay(spec, replay_order(last.interactions, config), items, states, config, 1, first=len(learned)))
    clicks = np.asarray([float(event.kind == "click") for event in last.interactions])
    without = pq.read_table(folder / "last.parquet")["without"].to_numpy()
    return Recorded(learned, later, log_odds(spec, history.interactions, len(items)), clicks, without)


def of_network(groups: Sequence[SampleGroup], spec: FeatureSpec) -> list[SampleGroup]:
    """Return the groups as a mesh of this spec would have logged them: the network is part of the schema hash."""
    first, found = spec_with("dcn_din"), []
    for group in groups:
        block = exposure_block.encode(exposure_block.decode(group.features_block, first), spec.schema_hash)
        found.append(SampleGroup())
        found[-1].CopyFrom(group)
        found[-1].schema_hash, found[-1].features_block = spec.schema_hash, block
    return found


@pytest.mark.parametrize("network", NETWORK_NAMES)
def test_a_planted_interaction_is_found_by_the_networks_that_can_in_tables_of_bounded_size(recorded, network):
    torch.set_num_threads(1)
    spec = spec_with(network)
    learner = Learner(spec, LearnerConfig.of(spec))
    begin_at(learner.network, spec, recorded.log_odds_T)
    learned = of_network(recorded.learned, spec)
    for start in range(0, len(learned), 64):
        learner.step(learned[start : start + 64])
    said = np.asarray([scores[0, 0] for scores in learner.score(of_network(recorded.later, spec))], np.float64)
    found = auc(recorded.clicks, said) - auc(recorded.clicks, recorded.without)
    print(f"{network}: AUC {auc(recorded.clicks, said):.3f}, {found:+.3f} against the truth without the interaction")
    assert found > 0.1 if network not in CANNOT else found < 0.02
    assert said.sum() / recorded.clicks.sum() == pytest.approx(1.0, abs=0.25)
    sizes = {name: len(table) for name, table in learner.tables.items() if name.startswith("c")}
    assert sizes["c19"] > MAX_ROWS / 2 and max(sizes.values()) <= (1 + 1 / 8) * MAX_ROWS
