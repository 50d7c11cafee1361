"""The written-out scoring of the network that ships gives the probabilities of torch, over random specs, weights and requests."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.inputs import RankerInputs, assemble
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.interface import RankerNetwork, Rows
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import ByTorch, WrittenOut, score, scoring_of

pytestmark = pytest.mark.ml

LIKE = {"name": "like", "labels": {"rating": {"at_least": 4}}}
TASKS = [{"name": "interact", "labels": {"rating": 1}, "unanswered": 0}, LIKE, {**LIKE, "name": "love"}]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(dim: int, num_tasks: int, length: int, network: object = "dcn_din") -> FeatureSpec:
    return FeatureSpec.parse(
        {
            "format": 1,
            "model": "ranker",
            "tables": {"user": {"dim": dim}, "item": {"dim": dim}},
            "history": {"length": length},
            "kinds": {"rating": {"value_range": [1, 5]}},
            "tasks": TASKS[:num_tasks],
            "blend": {"interact": 1.0},
            "network": network,
        }
    )


def random_spec(rng: np.random.Generator, seed: int) -> FeatureSpec:
    sizes = {"hidden": rng.integers(1, 70, 2).tolist(), "attention_dim": int(rng.integers(1, 20))}
    num_tasks = int(rng.integers(1, 4))
    return spec_of(num_tasks + int(rng.integers(2, 20)), num_tasks, int(rng.integers(1, 25)), sizes if seed % 3 else "dcn_din")


def random_weights(network: RankerNetwork, rng: np.random.Generator, deviation: float = 0.05) -> dict[str, np.ndarray]:
    """Weights that are all away from zero, biases and null score included."""
    return {name: (value + rng.normal(0, deviation, value.shape)).astype(np.float32) for name, value in network.state().items()}


def random_request(spec: FeatureSpec, rng: np.random.Generator, num_items: int, num_history: int) -> tuple:
    """Return features and rows of a user, the items and the history."""
    dim = spec.tables.item.dim
    features = Features(
        user_key=7,
        history_keys_L=np.arange(num_history),
        history_values_L=rng.random(num_history).astype(np.float16),
        user_U=rng.normal(size=len(spec.user_columns)).astype(np.float16),
        items_NF=rng.normal(size=(num_items, len(spec.item_columns))).astype(np.float16),
    )
    rows = [(0.7 * rng.normal(size=shape)).astype(np.float32) for shape in (dim, (num_items, dim), (num_history, dim))]
    return features, *rows


def by_modules(network: RankerNetwork, spec: FeatureSpec, features: Features, user_D, items_ND, history_LD) -> np.ndarray:
    """Score with torch's modules as the trainer's own predictions do."""
    inputs = assemble(spec, [(features, np.zeros(len(items_ND), np.int64))])
    padded_LD = np.zeros((spec.history.length, items_ND.shape[1]), np.float32)
    padded_LD[: len(history_LD)] = history_LD
    rows = Rows(torch.from_numpy(user_D[None]), torch.from_numpy(items_ND), torch.from_numpy(padded_LD[None]))
    return score(network, inputs, rows)


def in_double(network: RankerNetwork, spec: FeatureSpec, features: Features, *rows: np.ndarray) -> np.ndarray:
    """Score in float64."""
    inputs = assemble(spec, [(features, np.zeros(len(rows[1]), np.int64))])
    numbers = {name: value for name in fields_of(inputs) if isinstance(value := getattr(inputs, name), np.ndarray)}
    wide = {name: value.astype(np.float64) for name, value in numbers.items() if value.dtype == np.float32}
    user_D, items_ND, history_LD = (torch.from_numpy(part).double() for part in rows)
    padded_LD = torch.zeros(spec.history.length, items_ND.shape[1], dtype=torch.float64)
    padded_LD[: len(history_LD)] = history_LD
    with torch.inference_mode():
        logits_NT = network.double()(replace(inputs, **wide), Rows(user_D[None], items_ND, padded_LD[None]))
    network.float()
    return torch.sigmoid(logits_NT).numpy()


def fields_of(inputs: RankerInputs) -> list[str]:
    return [each.name for each in fields(inputs)]


@pytest.mark.parametrize("seed", range(40))
def test_probabilities_are_those_of_the_modules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, seed)
    network = DcnDin(spec, seed)
    written = scoring_of(spec, make_network(spec, seed + 1))
    assert isinstance(written, WrittenOut)
    for num_items in (100, 1, int(rng.integers(2, 600)), 100):
        for num_history in {0, 1, spec.history.length, int(rng.integers(0, spec.history.length + 1))}:
            weights = random_weights(network, rng)
            network.load(weights)
            written.load(weights)
            request = random_request(spec, rng, num_items, num_history)
            np.testing.assert_allclose(written.score(*request), by_modules(network, spec, *request), rtol=0, atol=1e-5)


def test_other_networks_and_depths_are_scored_by_torch_with_the_same_numbers() -> None:
    rng = np.random.default_rng(1)
    for sizes in ("mmoe", "din", {"name": "dcn_din", "cross_layers": 3}, {"name": "dcn_din", "hidden": [64]}):
        spec = spec_of(16, 2, 20, sizes)
        network = make_network(spec, 3)
        scoring = scoring_of(spec, network)
        assert isinstance(scoring, ByTorch)
        weights = random_weights(network, rng)
        scoring.load(weights)
        request = random_request(spec, rng, 50, 4)
        again = make_network(spec, 4)
        again.load(weights)
        np.testing.assert_allclose(scoring.score(*request), by_modules(again, spec, *request), rtol=0, atol=1e-6)


def test_a_subclass_is_another_network() -> None:
    class Other(DcnDin):
        pass

    spec = spec_of(16, 2, 20)
    assert isinstance(scoring_of(spec, Other(spec)), ByTorch)


def test_equal_calls_give_equal_bits_whatever_came_between() -> None:
    rng, spec = np.random.default_rng(2), spec_of(16, 2, 20)
    one, two = (scoring_of(spec, DcnDin(spec, 5)) for _ in range(2))
    request = random_request(spec, rng, 100, 20)
    expected = one.score(*request).copy()
    for num_items, num_history in ((300, 3), (7, 0), (100, 20)):
        two.score(*random_request(spec, rng, num_items, num_history))
    np.testing.assert_array_equal(two.score(*request), expected)


def test_only_changed_weights_are_swapped_and_the_result_is_that_of_all() -> None:
    rng, spec = np.random.default_rng(3), spec_of(16, 2, 20)
    network = DcnDin(spec, 5)
    scoring, request = scoring_of(spec, network), random_request(spec, rng, 30, 9)
    weights = network.state()
    for name in weights:
        weights = weights | {name: (weights[name] + rng.normal(0, 0.3, weights[name].shape)).astype(np.float32)}
        scoring.load(weights)
        network.load(weights)
        np.testing.assert_allclose(scoring.score(*request), by_modules(network, spec, *request), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("network", ["dcn_din", "mmoe"])
def test_foreign_weights_are_refused_and_change_nothing(network: str) -> None:
    rng, spec = np.random.default_rng(4), spec_of(16, 2, 20, network)
    scoring = scoring_of(spec, make_network(spec, 5))
    request = random_request(spec, rng, 10, 3)
    before, weights = scoring.score(*request).copy(), make_network(spec, 6).state()
    with pytest.raises(CorruptArtifact, match=r"names differ.*dot_scale"):
        scoring.load({name: value for name, value in weights.items() if name != "dot_scale"})
    with pytest.raises(CorruptArtifact, match=r"dot_scale has shape \(3,\), want \(2,\)"):
        scoring.load(weights | {"dot_scale": np.ones(3, np.float32)})
    np.testing.assert_array_equal(scoring.score(*request), before)


def test_it_rounds_no_worse_than_the_modules_where_weights_are_so_large_that_both_round() -> None:
    rng = np.random.default_rng(6)
    worst = {"written": 0.0, "modules": 0.0}
    for seed in range(12):
        spec = random_spec(rng, seed)
        network = DcnDin(spec, seed)
        weights = random_weights(network, rng, 0.3)
        network.load(weights)
        written = scoring_of(spec, DcnDin(spec, seed))
        written.load(weights)
        request = random_request(spec, rng, 300, spec.history.length)
        found = {"written": written.score(*request), "modules": by_modules(network, spec, *request)}
        exact = in_double(network, spec, *request)
        worst = {name: max(worst[name], float(np.abs(found[name] - exact).max())) for name in worst}
    assert worst["modules"] > 1e-6, "these weights are small: nothing is tried"
    assert worst["written"] < 3 * worst["modules"]


def test_far_logits_stay_probabilities() -> None:
    rng, spec = np.random.default_rng(5), spec_of(16, 2, 20)
    network = DcnDin(spec, 5)
    scoring = scoring_of(spec, network)
    features, *rows = random_request(spec, rng, 40, 20)
    for factor in (0.0, 10.0, 50.0):
        request = (features, *(np.ascontiguousarray(factor * row) for row in rows))
        found = scoring.score(*request)
        assert ((found >= 0.0) & (found <= 1.0)).all()
        np.testing.assert_allclose(found, by_modules(network, spec, *request), rtol=0, atol=1e-4)
