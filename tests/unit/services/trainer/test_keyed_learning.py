"""Rows of declared features: learned as autograd has it, kept, dropped and begun as tables are, and the same bits again and again."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.declared.row_keys import RowKeys
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.interface import Rows
from services.common.ranker.networks.registry import make_network
from services.trainer.group_columns import columns_of
from services.trainer.learner import Learner
from tests.learning import KEYED, SEQUENCE, groups, with_features

pytestmark = pytest.mark.ml

TEAM = with_features(KEYED)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def taught(spec: FeatureSpec, count: int = 48, *, at_once: int = 8, seed: int = 0) -> Learner:
    learner, every = Learner(spec), groups(count, spec=spec, seed=seed)
    for at in range(0, count, at_once):
        learner.step(every[at : at + at_once])
    return learner


def bags(rows: RowKeys, which: int) -> tuple[list[int], list[int]]:
    """Return the keys of one feature and where each row's begin, told apart key by key."""
    keys: list[int] = []
    begins, at = [], 0
    for counts in rows.counts_NK.tolist():
        begins.append(len(keys))
        for feature, count in enumerate(counts):
            keys += rows.keys_S[at : at + count].tolist() if feature == which else []
            at += count
    return keys, begins


def pooled_by_torch(spec: FeatureSpec, rows: RowKeys, keyed, weights: dict[str, torch.Tensor], ids: dict[str, list[int]]) -> torch.Tensor:
    parts = []
    for which, one in enumerate(keyed):
        keys, begins = bags(rows, which)
        places = torch.tensor([ids[one.table].index(key) for key in keys])
        parts.append(torch.nn.functional.embedding_bag(places, weights[one.table], torch.tensor(begins), mode=one.pooling))
    return torch.cat(parts, dim=1)


def at_once(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{kind: {**keys, "filter_freq": 1} for kind, keys in one.items()} for one in features]


@pytest.mark.parametrize(
    ("network", "sequences"),
    [("dcn_din", []), ("deepfm", []), ("mmoe", []), ("dcn_din", [SEQUENCE]), ("din", [SEQUENCE]), ("deepfm", [SEQUENCE])],
)
def test_a_step_moves_rows_as_embedding_bags_under_autograd_and_adagrad_do(network: str, sequences: list[dict[str, Any]]) -> None:
    sequences = [
        {"sequence_feature": one["sequence_feature"] | {"features": at_once(one["sequence_feature"]["features"])}} for one in sequences
    ]
    spec = with_features([*at_once(KEYED), *sequences], network=network)
    learner, batch = taught(spec, 40), groups(48, spec=spec)[40:]
    made = learner._batch([columns_of(spec, group) for group in batch])
    inputs, rate, unit = made.inputs, learner.config.feature_rate, learner.config.loss_unit
    assert inputs.keys is not None
    tables, ids, weights, before = [name for name in learner.tables if name not in ("user", "item")], {}, {}, {}
    probe = Learner(spec)
    probe.load_state_arrays(learner.state_arrays())
    pool = probe._pool(inputs)
    of_sequence = ["latest__age", "latest__item", "latest__tags"] if sequences else []
    assert pool is not None and sorted(pool.ids) == sorted(tables) == sorted(["both", "hour", "places", "tags", *of_sequence])
    for name in tables:
        ids[name] = sorted(set(pool.ids[name].tolist()))
        # Rows that the step creates are drawn before it learns: a probe's are the same.
        probe.tables[name].count(np.asarray(ids[name]))
        slots = probe.tables[name].slots_for_update(np.asarray(ids[name]))
        weights[name] = torch.from_numpy(probe.tables[name].rows[slots].copy()).requires_grad_(True)
        before[name] = probe.tables[name].accumulators[slots][:, 0]
    user_GV = pooled_by_torch(spec, inputs.keys.user, spec.plan.user_keyed, weights, ids)
    item_BV = pooled_by_torch(spec, inputs.keys.items, spec.plan.item_keyed, weights, ids)
    of_sequences = tuple(
        (pooled_by_torch(spec, keys.events, one.parts, weights, ids), pooled_by_torch(spec, keys.candidates, one.queries, weights, ids))
        for one, keys in zip(spec.plan.sequences, inputs.keys.sequences, strict=True)
    )
    assert not sequences or min(inputs.sequence_lengths[0]) < max(inputs.sequence_lengths[0]) == 6
    dense = make_network(spec)
    dense.load(learner.dense_state())
    rows = learner._stored_rows(inputs)
    for name, keys in (("user", inputs.user_keys_G), ("item", np.concatenate([inputs.item_keys_B, inputs.history_keys_GL.ravel()]))):
        unique = np.unique(keys)
        probe.tables[name].count(unique)
        probe.tables[name].slots_for_update(unique)
    items = probe.tables["item"]
    history = items.lookup(inputs.history_keys_GL.ravel()).reshape(rows.history_GLD.shape) * inputs.history_mask_GL[..., None]
    plain = (probe.tables["user"].lookup(inputs.user_keys_G), items.lookup(inputs.item_keys_B), history.astype(np.float32))
    z = dense(inputs, Rows(*map(torch.from_numpy, plain), user_GV, item_BV, of_sequences)) + torch.from_numpy(learner._shift_T)
    ones, zeros = torch.from_numpy(made.ones_BT), torch.from_numpy(made.zeros_BT)
    loss = (ones * torch.nn.functional.softplus(-z) + zeros * torch.nn.functional.softplus(z)).sum() / unit
    found = dict(zip(tables, torch.autograd.grad(loss, [weights[name] for name in tables]), strict=True))
    learner.step(batch)
    for name in tables:
        gradient = found[name].numpy()
        assert np.abs(gradient).max() > 1e-4, name
        squares = before[name] + gradient**2
        expected = weights[name].detach().numpy() - rate * gradient / (np.sqrt(squares) + 1e-8)
        slots = learner.tables[name].slots_of(np.asarray(ids[name]))
        assert (slots >= 0).all()
        np.testing.assert_allclose(learner.tables[name].rows[slots], expected, atol=2e-5)


def test_scores_of_a_block_and_of_its_group_are_the_same_and_depend_on_the_keys() -> None:
    learner = taught(TEAM)
    group = groups(60, spec=TEAM)[-1]
    block, items = group.features_block, [sample.item_id for sample in group.samples]
    np.testing.assert_allclose(learner.score([group])[0], learner.score_block(block, items), atol=1e-6)
    decoded = exposure_block.decode(block, TEAM)
    assert decoded.keys is not None
    decoded.keys.items.keys_S.flags.writeable = False
    other = SampleGroup()
    other.CopyFrom(group)
    start = len(block) - 8 * (len(decoded.keys.user.keys_S) + len(decoded.keys.items.keys_S))
    other.features_block = block[:start] + bytes(len(block) - start)
    assert np.abs(learner.score([group])[0] - learner.score([other])[0]).max() > 1e-4


def test_an_id_below_its_frequency_has_no_row_and_reads_zeros() -> None:
    learner, every = Learner(TEAM), groups(12, spec=TEAM)
    learner.step(every[:1])
    features = columns_of(TEAM, every[0]).features
    assert features.keys is not None
    which = [one.name for one in TEAM.plan.item_keyed].index("both")
    keys, _ = bags(features.keys.items, which)
    once = [key for key in set(keys) if keys.count(key) == 1]
    often = [key for key in set(keys) if keys.count(key) > 1]
    assert once and (learner.tables["both"].slots_of(np.asarray(once)) == -1).all()
    assert not often or (learner.tables["both"].slots_of(np.asarray(often)) >= 0).all()
    assert not learner.tables["both"].lookup(np.asarray(once)).any()
    for group in every[1:]:
        learner.step([group])
    assert len(learner.tables["both"]) > 0 and learner.tables["both"].frequency.sum() > 0


def test_learning_again_from_a_state_gives_the_bits_of_learning_on() -> None:
    every = groups(64, spec=TEAM)
    through, cut = Learner(TEAM), Learner(TEAM)
    for at in range(0, 64, 8):
        through.step(every[at : at + 8])
        cut.step(every[at : at + 8])
        if at == 24:
            arrays = cut.state_arrays()
            cut = Learner(TEAM)
            cut.load_state_arrays(arrays)
    assert cut.state_hash() == through.state_hash()
    assert {"places", "tags", "both", "hour"} <= through.tables.keys()
    for name in ("places", "tags", "both", "hour"):
        assert len(through.tables[name]) > 0
        assert cut.tables[name].content_hash() == through.tables[name].content_hash()


def test_max_rows_of_a_feature_holds_for_its_table() -> None:
    small = {"id_feature": {**KEYED[4]["id_feature"], "embedding_name": "origins", "max_rows": 4}}
    learner = taught(with_features([small]), 60)
    assert 0 < len(learner.tables["origins"]) <= 4 + 11
    learner.tables["origins"].evict(learner.steps)
    assert len(learner.tables["origins"]) == 4


def test_a_spec_that_adds_keyed_features_scores_as_before_and_learns_them_and_one_that_drops_them_keeps_the_rest(caplog) -> None:
    plain = with_features([])
    before = taught(plain)
    after = Learner(TEAM)
    with caplog.at_level(logging.WARNING):
        after.load_state_arrays(before.state_arrays())
    assert "the tables places, tags, both, hour begin empty" in caplog.text and "user city[0]" in caplog.text
    assert after.tables["user"].content_hash() == before.tables["user"].content_hash()
    teams, plains = groups(56, spec=TEAM)[48:], groups(56, spec=plain)[48:]
    for one, two in zip(after.score(teams), before.score(plains), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for _ in range(3):
        after.step(teams)
    assert all(len(after.tables[name]) for name in TEAM.all_tables)
    state = after.state_arrays()
    fewer = with_features([KEYED[1], KEYED[4]])
    less = Learner(fewer)
    with caplog.at_level(logging.WARNING):
        less.load_state_arrays(state)
    assert "all rows are kept, but those of both, hour are gone" in caplog.text
    for name in ("user", "item", "places", "tags"):
        assert less.tables[name].content_hash() == after.tables[name].content_hash()
    less.step(groups(56, spec=fewer)[48:])


def test_a_table_whose_rows_have_another_length_begins_empty_and_a_missing_one_is_refused() -> None:
    state = taught(TEAM).state_arrays()
    wider = [{"id_feature": {"feature_name": "town", "expression": "user:city", "embedding_dim": 12, "embedding_name": "places"}}, KEYED[1]]
    learner = Learner(with_features(wider))
    learner.load_state_arrays(state)
    assert (len(learner.tables["places"]), len(learner.tables["tags"])) == (0, len(state["table/tags/ids"]))
    with pytest.raises(CorruptArtifact, match="table 'hour': the state has no array"):
        Learner(TEAM).load_state_arrays({name: array for name, array in state.items() if not name.startswith("table/hour/")})
