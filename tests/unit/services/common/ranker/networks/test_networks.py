"""Every network of the registry, as the trainer and the ranker use it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from loadtests.metrics import auc
from services.common.platform.errors import CorruptArtifact
from services.common.ranker.inputs import RankerInputs
from services.common.ranker.network_spec import NETWORK_NAMES
from services.common.ranker.networks.checks import fault_of, group_alone, made_up
from services.common.ranker.networks.interface import RankerNetwork, Rows
from services.common.ranker.networks.registry import NETWORKS, make_network
from services.common.ranker.networks.scoring import score
from services.common.ranker.networks.sequences import AttentionPool, Events, Mean, UnitPool
from services.trainer.learner import Learner, LearnerConfig
from tests.learning import KEYED, SEQUENCE, groups, with_features, with_network

pytestmark = pytest.mark.ml

SPECS = {name: with_network(name) for name in NETWORK_NAMES}
every_network = pytest.mark.parametrize("name", NETWORK_NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def network(name: str, seed: int = 0) -> RankerNetwork:
    return make_network(SPECS[name], seed)


def test_the_spec_declares_the_networks_of_the_registry() -> None:
    assert tuple(NETWORKS) == NETWORK_NAMES
    assert [type(network(name)) for name in NETWORK_NAMES] == list(NETWORKS.values())


@every_network
def test_it_keeps_to_all_that_is_asked_of_a_network(name: str) -> None:
    for spec in (SPECS[name], with_features(KEYED, network=name), with_features([*KEYED, SEQUENCE], network=name)):
        assert fault_of(NETWORKS[name], spec) == ""
    assert [weight for weight, axes in make_network(spec).input_axes().items() if axes is None] == []
    assert [weight for weight, axes in network(name).input_axes().items() if axes is None] == []


def test_those_with_attention_weigh_events_by_the_candidate_and_the_others_alike() -> None:
    pools = {name: type(make_network(with_features([SEQUENCE], network=name)).sequence_pools["of_latest"]) for name in NETWORK_NAMES}
    assert {name: pool for name, pool in pools.items() if pool is not Mean} == {
        "dcn_din": AttentionPool,
        "din": UnitPool,
        "mmoe": AttentionPool,
        "ple": AttentionPool,
    }
    age = {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60], "embedding_dim": 4}}
    nothing_to_compare = with_features([{"sequence_feature": {"sequence_name": "latest", "features": [age]}}])
    assert isinstance(make_network(nothing_to_compare).sequence_pools["of_latest"], Mean)


@pytest.mark.parametrize(
    "kind", [Mean, lambda one: AttentionPool(one, 8), lambda one: UnitPool(one, [8])], ids=["mean", "attention", "unit"]
)
def test_a_pool_is_its_definition_event_by_event_and_padding_does_not_matter(kind) -> None:
    (sequence,) = with_features([SEQUENCE]).plan.sequences
    torch.manual_seed(0)
    pool, lengths, group_B = kind(sequence), [3, 0, 6], torch.tensor([0, 0, 1, 2, 2])
    events, candidates = torch.randn(9, sequence.width), torch.randn(5, sequence.query_width)
    with torch.no_grad():
        found = pool(Events.of(events, torch.tensor(lengths), candidates, group_B))
    places, begins = list(sequence.query_places), [0, 3, 3]
    for sample, group in enumerate(group_B.tolist()):
        own = events[begins[group] : begins[group] + lengths[group]]
        if isinstance(pool, Mean):
            weights = torch.full((len(own),), 1 / max(len(own), 1))
        elif isinstance(pool, AttentionPool):
            scores = (own @ pool.key.weight.T) @ (pool.query.weight @ candidates[sample]) / 8**0.5
            weights = torch.softmax(torch.cat([scores, pool.null_score]), dim=0)[:-1]
        else:
            query = candidates[sample].expand(len(own), -1)
            weights = pool.weight(torch.relu(pool.unit.layers[0](torch.cat([own, query, own[:, places] * query], dim=1)))).squeeze(1)
        expected = (weights.unsqueeze(1) * own).sum(dim=0)
        torch.testing.assert_close(found[sample], torch.cat([expected, expected[places] * candidates[sample]]), atol=1e-5, rtol=1e-4)


@every_network
@pytest.mark.parametrize(("num_items", "history"), [(1, 0), (1, None), (500, 0), (500, None), (7, 3)])
def test_probabilities_are_finite_for_any_history_and_number_of_items(name: str, num_items: int, history: int | None) -> None:
    inputs, rows = made_up(SPECS[name], (num_items,), history=history)
    for large in (1.0, 100.0):
        scores = score(network(name), inputs, Rows(*(large * part for part in rows[:3])))
        assert scores.shape == (num_items, 2)
        assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1


@every_network
def test_a_group_scores_the_same_alone_and_among_others(name: str) -> None:
    inputs, rows = made_up(SPECS[name], (5, 1, 9))
    together = score(network(name), inputs, rows)
    for group in range(3):
        alone = score(network(name), *group_alone(inputs, rows, group))
        np.testing.assert_allclose(alone, together[inputs.group_B == group], rtol=0, atol=2e-6)


@every_network
def test_padding_of_the_history_does_not_matter(name: str) -> None:
    inputs, rows = made_up(SPECS[name], (4, 3), history=5)
    values, history = inputs.history_values_GL.copy(), rows.history_GLD.clone()
    values[:, 5:], history[:, 5:] = 0.9, 3.0
    other = score(network(name), replace(inputs, history_values_GL=values), rows._replace(history_GLD=history))
    np.testing.assert_array_equal(other, score(network(name), inputs, rows))


@every_network
def test_weights_are_a_function_of_the_seed_and_go_there_and_back(name: str) -> None:
    torch.manual_seed(1)
    one = network(name, 3).state()
    torch.manual_seed(2)
    two, other = network(name, 3).state(), network(name, 4)
    assert one.keys() == two.keys() and all(np.array_equal(one[weight], two[weight]) for weight in one)
    inputs, rows = made_up(SPECS[name])
    assert not np.array_equal(score(other, inputs, rows), score(network(name, 3), inputs, rows))
    other.load(one)
    np.testing.assert_array_equal(score(other, inputs, rows), score(network(name, 3), inputs, rows))
    foreign = network(next(unlike for unlike in NETWORK_NAMES if unlike != name)).state()
    with pytest.raises(CorruptArtifact, match="names differ"):
        other.load(foreign)


@every_network
def test_the_gradient_reaches_every_weight_and_every_row(name: str) -> None:
    spec = with_features([*KEYED, SEQUENCE], network=name)
    inputs, rows = made_up(spec, (40, 40, 40))
    leaves = [
        part.requires_grad_(True) for part in (*rows[:3], rows.user_pooled_GV, rows.item_pooled_BV, *rows.sequences[0]) if part is not None
    ]
    own = make_network(spec)
    logits_BT = own(inputs, Rows(*leaves[:3]).with_sides(leaves[3:]))
    gradients = torch.autograd.grad(logits_BT.square().sum(), [*own.parameters(), *leaves])
    names = [*(weight for weight, _ in own.named_parameters()), *Rows._fields[:-1], "events", "candidates"]
    assert [weight for weight, gradient in zip(names, gradients, strict=True) if not gradient.abs().sum() > 0] == []


@every_network
def test_recall_repeats_the_part_of_the_logit_that_is_linear_in_the_items_row(name: str) -> None:
    """services/recommender/nearest.py: scale * (user + mean of history) · item + bias."""
    inputs, rows = made_up(SPECS[name], (30,))
    own = network(name)
    own.load(own.state() | {"dot_scale": np.array([1.5, 0.5], np.float32)})
    with torch.inference_mode():
        deep_BT = own.deep(own.samples(inputs, rows))
        rest_BT = (own(inputs, rows) - deep_BT).numpy()
    bias = SPECS[name].num_reserved_dims
    query_C = rows.user_GD[0, bias:] + rows.history_GLD[0, :, bias:].mean(dim=0)
    recalled_B = 1.5 * (rows.item_BD[:, bias:] @ query_C) + rows.item_BD[:, 0] + rows.user_GD[0, 0]
    np.testing.assert_allclose(rest_BT[:, 0], recalled_B, atol=1e-4)


def planted(of: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return users, items, user features, item features and labels: liked iff two signs agree, either of the ids' or of two features."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(24, size=count), rng.integers(30, size=count)
    spec = SPECS["dcn_din"]
    user_BU, items_BF = (rng.normal(size=(count, len(names))).astype(np.float32) for names in (spec.user_columns, spec.item_columns))
    agree = (users + items) % 2 == 0 if of == "ids" else user_BU[:, 0] * items_BF[:, 0] > 0
    return users, items, user_BU, items_BF, agree.astype(np.float32)


def batch(data: tuple[np.ndarray, ...], at: np.ndarray) -> RankerInputs:
    """One sample a group, without history."""
    users, items, user_BU, items_BF, _ = (part[at] for part in data)
    length = SPECS["dcn_din"].history.length
    nothing_GL = np.zeros((len(at), length), np.float32)
    return RankerInputs(users, nothing_GL.astype(np.int64), nothing_GL, nothing_GL, user_BU, items, items_BF, np.arange(len(at)))


def auc_after_training(name: str, of: str, *, steps: int) -> tuple[float, float]:
    """Return the AUC of like on unseen samples: the network's, and that of the best score that is a sum over users, items and features."""
    own, data, unseen = network(name), planted(of, 6_000, 0), planted(of, 2_000, 1)
    dim, rng = SPECS[name].tables.item.dim, np.random.default_rng(0)
    tables = [torch.tensor(0.1 * rng.normal(size=(rows, dim)), dtype=torch.float32, requires_grad=True) for rows in (24, 30)]

    def like(data: tuple[np.ndarray, ...], at: np.ndarray) -> torch.Tensor:
        inputs = batch(data, at)
        history_GLD = torch.zeros(len(at), inputs.history_mask_GL.shape[1], dim)
        return own(inputs, Rows(tables[0][data[0][at]], tables[1][data[1][at]], history_GLD))[:, 1]

    optimizer = torch.optim.Adam([*own.parameters(), *tables], lr=0.01)
    for _ in range(steps):
        at = rng.integers(len(data[0]), size=128)
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(like(data, at), torch.from_numpy(data[4][at])).backward()
        optimizer.step()
    with torch.inference_mode():
        learned = auc(unseen[4], like(unseen, np.arange(len(unseen[0]))).numpy().astype(np.float64))

    def sides(data: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.column_stack([np.eye(24)[data[0]], np.eye(30)[data[1]], data[2], data[3]])

    fitted = np.linalg.lstsq(sides(data), data[4], rcond=None)[0]
    return learned, auc(unseen[4], sides(unseen) @ fitted)


@every_network
def test_it_learns_who_likes_what(name: str) -> None:
    learned, additive = auc_after_training(name, "ids", steps=50)
    assert additive < 0.6 < 0.9 < learned


@pytest.mark.parametrize("name", [name for name in NETWORK_NAMES if name != "two_tower"])
def test_it_learns_which_features_go_together(name: str) -> None:
    learned, additive = auc_after_training(name, "features", steps=100)
    assert additive < 0.6 < 0.8 < learned


def test_two_towers_do_not_see_which_features_go_together() -> None:
    """Their sides meet in the dot product of rows alone: what they cannot do is said in their docstring."""
    learned, _ = auc_after_training("two_tower", "features", steps=100)
    assert learned < 0.6


@every_network
def test_the_learner_trains_it_saves_it_and_goes_on_from_there(name: str) -> None:
    spec = SPECS[name]
    samples = groups(24, spec=spec)
    learner = Learner(spec, LearnerConfig(seed=1))
    losses = [learner.step(samples[at : at + 8]).loss_by_task for at in range(0, 24, 8)]
    assert np.isfinite(losses).all()
    other = Learner(spec, LearnerConfig(seed=2))
    other.load_state_arrays(learner.state_arrays())
    for one in (learner, other):
        one.step(samples[:8])
    assert other.state_hash() == learner.state_hash()
