"""A feature spec that adds or drops columns keeps rows, and the weights of the columns that stay."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.platform.artifacts import Manifest, write_artifact
from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs
from services.common.ranker.network_spec import NETWORK_NAMES
from services.common.ranker.networks.blocks import wide_names
from services.common.ranker.networks.interface import Rows
from services.common.ranker.networks.names import columns_of
from services.common.ranker.spec_description import SCHEMA_ARRAY
from services.trainer.bases import read_initial_base
from services.trainer.batch import FeatureStates, replay
from services.trainer.checkpoints import Checkpoint, CheckpointStore, Counters, Retention, checkpoint_name
from services.trainer.dedup import DedupWindow
from services.trainer.learner import Learner
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import CATEGORIES, ITEMS, SPEC, groups, interactions

pytestmark = pytest.mark.ml


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_with(**changes: object) -> FeatureSpec:
    """The tests' spec with top-level parts replaced."""
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | changes)


def with_half_lives(*half_lives: float) -> FeatureSpec:
    return spec_with(counters={"half_lives_events": list(half_lives)})


OLD = with_half_lives(500, 5000)
MORE = with_half_lives(50, 500, 5000)
FEWER = with_half_lives(5000)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """Of a learner that has learned something under OLD."""
    torch.set_num_threads(1)
    learner = Learner(SPEC)
    for at in range(0, 64, 8):
        learner.step(groups(64)[at : at + 8])
    arrays = learner.state_arrays()
    assert SPEC.schema_hash == OLD.schema_hash, "the spec of the tests has these half-lives"
    return arrays


def loaded(spec: FeatureSpec, state: dict[str, np.ndarray]) -> Learner:
    learner = Learner(spec)
    learner.load_state_arrays(state)
    return learner


def logits(learner: Learner, spec: FeatureSpec) -> np.ndarray:
    """For 30 made-up samples of 2 users; a column has the same values whatever other columns there are."""
    rng = np.random.default_rng(5)
    dim, length = spec.tables.item.dim, spec.history.length
    columns = {name: np.random.default_rng(sum(name.encode())).normal(size=30) for name in (*spec.user_columns, *spec.item_columns)}
    inputs = RankerInputs(
        user_keys_G=np.arange(2),
        history_keys_GL=np.zeros((2, length), np.int64),
        history_values_GL=rng.random((2, length)).astype(np.float32),
        history_mask_GL=np.ones((2, length), np.float32),
        user_GU=np.stack([columns[name][:2] for name in spec.user_columns], axis=1).astype(np.float32),
        item_keys_B=np.arange(30),
        items_BF=np.stack([columns[name] for name in spec.item_columns], axis=1).astype(np.float32),
        group_B=np.repeat([0, 1], 15),
    )
    rows = Rows(*(torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((2, dim), (30, dim), (2, length, dim))))
    with torch.inference_mode():
        return learner.network(inputs, rows).numpy()


def test_a_spec_that_adds_columns_scores_as_before_and_keeps_every_row(state, caplog) -> None:
    before = loaded(OLD, state)
    with caplog.at_level(logging.WARNING):
        after = loaded(MORE, state)
    np.testing.assert_allclose(logits(after, MORE), logits(before, OLD), atol=1e-5)
    for name, table in before.tables.items():
        assert after.tables[name].content_hash() == table.content_hash()
    assert "item log_rate_50, item mean_50, item trend_50 begin at zero; none is gone" in caplog.text


def test_declared_features_may_be_added_and_dropped_and_keep_every_row_and_score(state, caplog) -> None:
    city = {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome"]}}
    price = {"raw_feature": {"feature_name": "price", "expression": "item:price"}}
    team, less = spec_with(format=2, features=[city, price]), spec_with(format=2, features=[price])
    before = loaded(OLD, state)
    with caplog.at_level(logging.WARNING):
        after = loaded(team, state)
    np.testing.assert_allclose(logits(after, team), logits(before, OLD), atol=1e-5)
    assert (
        "user city=Rome, user city.unknown, user city.absent" in caplog.text
        and "item price, item price.absent begin at zero" in caplog.text
    )
    assert loaded(OLD, loaded(less, after.state_arrays()).state_arrays()).state_hash() == loaded(OLD, state).state_hash()
    price["raw_feature"]["clip"] = [0, 9]
    with pytest.raises(ConfigurationError, match=r"features.price was .* and is .*clip.* \(give it another name\)"):
        loaded(spec_with(format=2, features=[price]), after.state_arrays())


def test_new_columns_are_learned(state) -> None:
    learner = loaded(MORE, state)
    at = wide_names(MORE.num_content_dims)(columns_of(MORE)).index("item log_rate_50")
    assert np.all(learner.dense_state()["towers.0.hidden.0.weight"][:, at] == 0)
    config = BatchConfig(feature_lag_s=0.0)
    order = replay_order(interactions(40, seed=3), config)
    learner.step(list(replay(MORE, order, ITEMS, FeatureStates(MORE, CATEGORIES), config, 0)))
    assert np.any(learner.dense_state()["towers.0.hidden.0.weight"][:, at] != 0)


def test_a_spec_that_drops_columns_keeps_every_row_and_the_weights_of_the_others(state, caplog) -> None:
    before, after = loaded(OLD, state), loaded(FEWER, state)
    assert "what was learned of item log_rate_500, item mean_500, item trend_500 is gone" in caplog.text
    old_names, new_names = (wide_names(spec.num_content_dims)(columns_of(spec)) for spec in (OLD, FEWER))
    kept = [old_names.index(name) for name in new_names]
    for task in range(len(OLD.tasks)):
        for weight in ("hidden.0.weight", "cross.0.weight"):
            old, new = (learner.dense_state()[f"towers.{task}.{weight}"] for learner in (before, after))
            np.testing.assert_array_equal(new, old[:, kept] if weight.startswith("hidden") else old[np.ix_(kept, kept)])
    for name, table in before.tables.items():
        assert after.tables[name].content_hash() == table.content_hash()


def test_adding_and_dropping_again_changes_nothing(state) -> None:
    there_and_back = loaded(OLD, loaded(MORE, state).state_arrays())
    assert there_and_back.state_hash() == loaded(OLD, state).state_hash()


def test_two_starts_from_one_state_under_a_new_spec_are_equal_to_the_bit(state) -> None:
    assert loaded(MORE, state).state_hash() == loaded(MORE, state).state_hash()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (spec_with(tables={"user": {"dim": 24}, "item": {"dim": 24}}), "tables was .* and is .*24"),
        (spec_with(tasks=[task.model_dump(mode="json") for task in SPEC.tasks[::-1]]), "tasks was"),
    ],
)
def test_what_cannot_be_kept_is_named_with_what_to_do(state, spec: FeatureSpec, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot be kept: {reason}.*train a base"):
        loaded(spec, state)


@pytest.mark.parametrize("text", [b"", b"[]", b"[1, {}, [], []]", b"\xff", b"[" * 100_000])
def test_a_description_that_cannot_be_understood_is_refused(state, text: bytes) -> None:
    with pytest.raises(CorruptArtifact, match="description of its feature spec"):
        loaded(MORE, state | {SCHEMA_ARRAY: np.frombuffer(text, np.uint8)})


@pytest.mark.parametrize("network", NETWORK_NAMES)
def test_every_network_scores_as_before_when_columns_are_added_and_keeps_the_rest_when_they_are_dropped(network: str) -> None:
    old, more = (spec_with(network=network, counters={"half_lives_events": lives}) for lives in ([500, 5000], [50, 500, 5000]))
    learner, samples = Learner(old), groups(16, spec=old)
    learner.step(samples[:8])
    learner.step(samples[8:])
    before = learner.state_arrays()
    after = loaded(more, before)
    np.testing.assert_allclose(logits(after, more), logits(learner, old), atol=1e-5)
    assert loaded(old, after.state_arrays()).state_hash() == learner.state_hash()


def test_another_network_or_size_is_refused_by_name(state) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be kept: network was .*dcn_din.* and is .*mmoe.*train a base"):
        loaded(spec_with(network="mmoe"), state)
    with pytest.raises(ConfigurationError, match=r"cannot be kept: network was .* and is .*\"hidden\": \[32\]"):
        loaded(spec_with(network={"hidden": [32]}), state)
    with pytest.raises(ConfigurationError, match=r"cannot be kept: network was .*two_tower.* and is .*dcn_din"):
        loaded(OLD, Learner(spec_with(network="two_tower")).state_arrays())


def test_a_checkpoint_of_before_starts_the_new_spec_and_owes_replicas_a_base(state, tmp_path: Path) -> None:
    cut = Cut(
        name=checkpoint_name(1, 1), lineage_id="L", epoch=1, base_id="base-1", position=Position((PartitionPosition(4),)), delta_offset=2
    )
    counters, dedup = Counters(samples_trained=7), DedupWindow(9, 9).to_arrays()
    checkpoint = Checkpoint(cut=cut, seq=1, within_seq=-1, counters=counters, arrays=state, dedup=dedup)
    retention = Retention(keep=2, history_interval_ms=1, history_keep=0)
    old, new = (CheckpointStore(str(tmp_path), model="m", schema_hash=spec.schema_hash, retention=retention) for spec in (OLD, MORE))
    old.write(checkpoint, now_ms=1)
    found = new.newest()
    assert found is not None and found.cut == replace(cut, base_id="")
    assert found.counters == counters and found.dedup.keys() == dedup.keys()
    loaded(MORE, dict(found.arrays))
    assert old.newest().cut == cut


def test_a_base_of_before_starts_the_new_spec(state, tmp_path: Path) -> None:
    manifest = Manifest(kind="base", model="m", schema_hash=OLD.schema_hash, lineage_id="", epoch=0, seq=-1)
    url = write_artifact(tmp_path / "base", manifest, state).url
    loaded(FEWER, read_initial_base(url, schema_hash=FEWER.schema_hash, variable="X"))
    bare = write_artifact(tmp_path / "bare", manifest, {name: array for name, array in state.items() if name != SCHEMA_ARRAY}).url
    with pytest.raises(ConfigurationError, match="is foreign"):
        read_initial_base(bare, schema_hash=FEWER.schema_hash, variable="X")
