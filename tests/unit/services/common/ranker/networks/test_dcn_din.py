from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.features import Features
from services.common.ranker.inputs import RankerInputs, assemble
from services.common.ranker.networks.interface import RankerNetwork, Rows
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import score
from services.trainer.learner import Learner, LearnerConfig
from tests.learning import SPEC, groups

pytestmark = pytest.mark.ml

DIM = SPEC.tables.item.dim


def features(num_items: int, num_history: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        user_key=7,
        history_keys_L=rng.integers(1, 1000, num_history),
        history_values_L=rng.random(num_history).astype(np.float16),
        user_U=rng.normal(size=len(SPEC.user_columns)).astype(np.float16),
        items_NF=rng.normal(size=(num_items, len(SPEC.item_columns))).astype(np.float16),
    )


def rows_of(inputs: RankerInputs) -> Rows:
    """Rows that depend on the id alone, as a table's do."""

    def table(keys: np.ndarray, offset: int) -> torch.Tensor:
        flat = [np.random.default_rng(int(key) + offset).normal(size=DIM) for key in keys.reshape(-1)]
        return torch.tensor(np.asarray(flat).reshape(*keys.shape, DIM), dtype=torch.float32)

    return Rows(table(inputs.user_keys_G, 10_000), table(inputs.item_keys_B, 0), table(inputs.history_keys_GL, 0))


def network(seed: int = 0) -> RankerNetwork:
    return make_network(SPEC, seed)


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    one = network(3).state()
    torch.manual_seed(2)
    two, other = network(3).state(), network(4).state()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_scores_are_the_same_from_features_and_from_their_logged_block() -> None:
    original = features(30, 12)
    keys = np.arange(30)
    logged = exposure_block.decode(exposure_block.encode(original, SPEC.schema_hash), SPEC)
    direct, via_block = assemble(SPEC, [(original, keys)]), assemble(SPEC, [(logged, keys)])
    np.testing.assert_array_equal(score(network(), direct, rows_of(direct)), score(network(), via_block, rows_of(via_block)))


def test_a_group_scores_the_same_alone_and_among_others() -> None:
    first, second = features(5, 3, seed=1), features(4, 20, seed=2)
    both = assemble(SPEC, [(first, np.arange(5)), (second, np.arange(5, 9))])
    alone = assemble(SPEC, [(second, np.arange(5, 9))])
    np.testing.assert_allclose(score(network(), both, rows_of(both))[5:], score(network(), alone, rows_of(alone)), rtol=1e-5)


def test_padding_of_the_history_does_not_matter() -> None:
    inputs = assemble(SPEC, [(features(6, 4), np.arange(6))])
    keys, values = inputs.history_keys_GL.copy(), inputs.history_values_GL.copy()
    keys[:, 4:], values[:, 4:] = 123, 0.9
    other = replace(inputs, history_keys_GL=keys, history_values_GL=values)
    np.testing.assert_array_equal(score(network(), inputs, rows_of(inputs)), score(network(), other, rows_of(other)))


def test_an_empty_history_gives_finite_scores() -> None:
    inputs = assemble(SPEC, [(features(6, 0), np.arange(6))])
    scores = score(network(), inputs, rows_of(inputs))
    assert scores.shape == (6, len(SPEC.tasks))
    assert np.isfinite(scores).all()


def test_the_user_and_item_dot_product_moves_every_task_and_biases_move_their_own() -> None:
    inputs = assemble(SPEC, [(features(3, 0), np.arange(3))])
    rows = rows_of(inputs)
    quiet = make_network(SPEC)
    quiet.load({name: value * 0 if "towers" in name else value for name, value in quiet.state().items()})
    before = quiet(inputs, rows)
    item = rows.item_BD.clone()
    item[:, 1] += 1.0
    moved = quiet(inputs, rows._replace(item_BD=item)) - before
    np.testing.assert_allclose(moved.detach().numpy(), [[0.0, 1.0]] * 3, atol=1e-5)
    bias = SPEC.num_reserved_dims
    dot = (rows.user_GD[:, bias:] * rows.item_BD[:, bias:]).sum(dim=1)
    np.testing.assert_allclose(before[:, 0].detach(), dot + rows.user_GD[:, 0] + rows.item_BD[:, 0], rtol=1e-4, atol=1e-5)


def test_bf16_agrees_with_fp32_closely_enough_to_rank() -> None:
    inputs = assemble(SPEC, [(features(100, 20), np.arange(100))])
    exact = score(network(), inputs, rows_of(inputs), precision="fp32")
    short = score(network(), inputs, rows_of(inputs), precision="bf16")
    assert not np.array_equal(exact, short)
    assert np.abs(exact - short).max() < 0.05
    assert np.corrcoef(exact[:, 0], short[:, 0])[0, 1] > 0.99


def test_foreign_weights_are_refused() -> None:
    state = network().state()
    with pytest.raises(CorruptArtifact, match="names differ"):
        network().load({name: value for name, value in state.items() if name != "dot_scale"})
    with pytest.raises(CorruptArtifact, match="dot_scale has shape"):
        network().load({**state, "dot_scale": np.zeros(5, np.float32)})


# Bases and checkpoints hold weights by these names, and the optimizer's moments in this order, without names. Recorded on 2026-11-28, when
# the network stood in one file: sum of the weights and of their magnitudes, for seed 3.
RECORDED = {
    "null_score": ((1,), 0.0, 0.0),
    "dot_scale": ((2,), 2.0, 2.0),
    "query.weight": ((16, 14), 0.561648, 46.400939),
    "key.weight": ((16, 15), 0.797570, 48.920485),
    "towers.0.cross.0.weight": ((124, 124), 10.335385, 1108.275608),
    "towers.0.cross.0.bias": ((124,), 0.0, 0.0),
    "towers.0.cross.1.weight": ((124, 124), 9.425729, 1104.159713),
    "towers.0.cross.1.bias": ((124,), 0.0, 0.0),
    "towers.0.hidden.0.weight": ((64, 124), 15.795765, 559.082949),
    "towers.0.hidden.0.bias": ((64,), 0.0, 0.0),
    "towers.0.hidden.1.weight": ((32, 64), 9.805915, 206.303709),
    "towers.0.hidden.1.bias": ((32,), 0.0, 0.0),
    "towers.0.out.weight": ((1, 156), 0.032122, 8.513398),
    "towers.0.out.bias": ((1,), 0.0, 0.0),
    "towers.1.cross.0.weight": ((124, 124), 13.439288, 1100.688199),
    "towers.1.cross.0.bias": ((124,), 0.0, 0.0),
    "towers.1.cross.1.weight": ((124, 124), 13.105339, 1094.334998),
    "towers.1.cross.1.bias": ((124,), 0.0, 0.0),
    "towers.1.hidden.0.weight": ((64, 124), -10.915700, 556.964487),
    "towers.1.hidden.0.bias": ((64,), 0.0, 0.0),
    "towers.1.hidden.1.weight": ((32, 64), 0.055634, 208.060150),
    "towers.1.hidden.1.bias": ((32,), 0.0, 0.0),
    "towers.1.out.weight": ((1, 156), -1.043198, 9.644691),
    "towers.1.out.bias": ((1,), 0.0, 0.0),
}
RECORDED_OF_ONE_GROUP = [[0.4222327, 0.5655768], [0.4299691, 0.5649499], [0.3567536, 0.5821893]]
RECORDED_OF_MANY = [[0.3859874, 0.5498876], [0.3548012, 0.5345458], [0.3772358, 0.5444517]]


def test_weights_have_the_names_the_order_and_the_beginnings_that_artifacts_were_made_with() -> None:
    state = network(3).state()
    assert list(state) == [name for name, _ in network(3).named_parameters()] == list(RECORDED)
    for name, (shape, total, magnitude) in RECORDED.items():
        assert state[name].shape == shape
        np.testing.assert_allclose([state[name].sum(), np.abs(state[name]).sum()], [total, magnitude], rtol=1e-4, atol=1e-4)


def test_it_learns_and_scores_as_it_did_when_artifacts_were_made_with_it() -> None:
    torch.set_num_threads(1)
    learner, samples = Learner(SPEC, LearnerConfig(seed=1)), groups(64)
    for at in range(0, 64, 8):
        learner.step(samples[at : at + 8])
    np.testing.assert_allclose(learner.score(samples[5:6])[0][:3], RECORDED_OF_ONE_GROUP, atol=2e-4)
    np.testing.assert_allclose(np.concatenate(learner.score(samples[:5]))[:3], RECORDED_OF_MANY, atol=2e-4)
