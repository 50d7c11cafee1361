"""The written-out gradients of the network that ships are those of torch's autograd, over random specs, weights and batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.registry import make_network
from services.common.ranker.pooling import Pooled
from services.trainer.gradients import Autograd, StepInputs, WrittenOut, gradients_of
from services.trainer.tower_kernels import adagrad, adam, losses

pytestmark = pytest.mark.ml

LIKE = {"name": "like", "labels": {"rating": {"at_least": 4}}}
TASKS = [{"name": "interact", "labels": {"rating": 1}, "unanswered": 0}, LIKE, {**LIKE, "name": "love"}]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


KEYED = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "embedding_dim": 5}},
    {"id_feature": {"feature_name": "tags", "expression": "item:tags", "embedding_dim": 4, "pooling": "mean"}},
    {"combo_feature": {"feature_name": "both", "expression": ["user:city", "item:tags"], "embedding_dim": 7}},
]


def spec_of(dim: int, num_tasks: int, length: int, network: object = "dcn_din", features: Sequence[object] = ()) -> FeatureSpec:
    return FeatureSpec.parse(
        {
            "format": 2 if features else 1,
            "features": list(features),
            "model": "ranker",
            "tables": {"user": {"dim": dim}, "item": {"dim": dim}},
            "history": {"length": length},
            "kinds": {"rating": {"value_range": [1, 5]}},
            "tasks": TASKS[:num_tasks],
            "blend": {"interact": 1.0},
            "network": network,
        }
    )


def random_step(spec: FeatureSpec, rng: np.random.Generator, num_groups: int) -> StepInputs:
    """Return a batch with empty, short and full histories, repeated users and items, and some users hidden."""
    length, dim = spec.history.length, spec.tables.item.dim
    filled_GL = np.arange(length) < rng.integers(0, length + 1, num_groups)[:, None]
    sizes = rng.integers(1, 20, num_groups)
    num_samples, num_users, num_items = int(sizes.sum()), int(rng.integers(1, 6)), int(rng.integers(1, 60))
    inputs = RankerInputs(
        user_keys_G=np.zeros(num_groups, np.int64),
        history_keys_GL=np.zeros((num_groups, length), np.int64),
        history_values_GL=(rng.random((num_groups, length)) * filled_GL).astype(np.float32),
        history_mask_GL=filled_GL.astype(np.float32),
        user_GU=rng.normal(size=(num_groups, len(spec.user_columns))).astype(np.float32),
        item_keys_B=np.zeros(num_samples, np.int64),
        items_BF=rng.normal(size=(num_samples, len(spec.item_columns))).astype(np.float32),
        group_B=np.repeat(np.arange(num_groups), sizes),
    )
    widths = [sum(one.dim for one in keyed) for keyed in (spec.plan.user_keyed, spec.plan.item_keyed)]
    numbers = [rng.normal(size=shape).astype(np.float32) for shape in zip((num_groups, num_samples), widths, strict=True)]
    return StepInputs(
        inputs=inputs,
        users_UD=rng.normal(size=(num_users, dim)).astype(np.float32),
        items_UD=rng.normal(size=(num_items, dim)).astype(np.float32),
        user_at_G=rng.integers(0, num_users, num_groups),
        item_at_B=rng.integers(0, num_items, num_samples),
        history_at_GL=rng.integers(0, num_items, (num_groups, length)),
        shown_G=(rng.random(num_groups) > 0.3).astype(np.float32),
        pooled=Pooled(*numbers) if any(widths) else None,
    )


def pair(spec: FeatureSpec, seed: int) -> tuple[Autograd, WrittenOut]:
    """Return both ways over equal networks whose every weight, biases and null score included, is away from zero."""
    one, two = DcnDin(spec, seed), DcnDin(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    two.load(one.state())
    return Autograd(one), WrittenOut(two)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(float(np.abs(expected).max(initial=0.0)), 1e-3))


@pytest.mark.parametrize("seed", range(30))
def test_logits_and_gradients_are_those_of_autograd(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, attention = rng.integers(1, 70), rng.integers(1, 40), rng.integers(1, 20)
    network = {"hidden": [int(first), int(second)], "attention_dim": int(attention)} if seed % 3 == 0 else "dcn_din"
    features = KEYED[: seed % 4] if seed % 2 else ()
    spec = spec_of(int(rng.integers(6, 24)), int(rng.integers(1, 4)), int(rng.integers(1, 25)), network, features)
    autograd, written = pair(spec, seed)
    for num_groups in (16, 1, 5, 20):
        step = random_step(spec, rng, num_groups)
        logits_BT = written.forward(step)
        assert_close(logits_BT, autograd.forward(step))
        of_logits_BT = rng.normal(size=logits_BT.shape).astype(np.float32)
        found, expected = written.backward(of_logits_BT), autograd.backward(of_logits_BT)
        assert_close(found.users_UD, expected.users_UD)
        assert_close(found.items_UD, expected.items_UD)
        assert (found.pooled is None) == (expected.pooled is None) == (seed % 2 == 0)
        if found.pooled is not None and expected.pooled is not None:
            assert_close(found.pooled.user_GV, expected.pooled.user_GV)
            assert_close(found.pooled.items_BV, expected.pooled.items_BV)
        assert_close(written.named(written.gradient_P), autograd.named(autograd.gradient_P))


def test_equal_calls_give_equal_bits_whatever_came_between() -> None:
    rng = np.random.default_rng(1)
    spec = spec_of(16, 2, 20)
    one, two = pair(spec, 0)[1], pair(spec, 0)[1]
    step, of_logits = random_step(spec, rng, 16), None
    two.forward(random_step(spec, rng, 40))
    results = []
    for each in (one, two):
        logits_BT = each.forward(step).copy()
        of_logits = rng.normal(size=logits_BT.shape).astype(np.float32) if of_logits is None else of_logits
        results.append([logits_BT, *each.backward(of_logits)[:2], each.gradient_P])
    for left, right in zip(*results, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_vector_in_the_networks_order_comes_back_as_it_was() -> None:
    spec = spec_of(16, 3, 20)
    network = DcnDin(spec, 3)
    expected = np.concatenate([value.ravel() for value in network.state().values()])
    for way in (Autograd(DcnDin(spec, 3)), WrittenOut(network)):
        np.testing.assert_array_equal(way.named(way.flat_P), expected)
        np.testing.assert_array_equal(way.unnamed(way.named(way.flat_P)), way.flat_P)


def test_another_network_learns_by_autograd() -> None:
    class Other(DcnDin):
        pass

    assert isinstance(gradients_of(DcnDin(spec_of(8, 1, 3))), WrittenOut)
    assert isinstance(gradients_of(Other(spec_of(8, 1, 3))), Autograd)


@pytest.mark.parametrize("network", [{"cross_layers": 3}, {"cross_layers": 1}, {"hidden": [64, 32, 16]}, {"hidden": [64]}, "mmoe"])
def test_other_layers_than_the_two_written_out_learn_by_autograd(network: object) -> None:
    assert isinstance(gradients_of(make_network(spec_of(8, 2, 3, network))), Autograd)
    assert isinstance(gradients_of(make_network(spec_of(8, 2, 3, {"hidden": [8, 4]}))), WrittenOut)


def test_losses_and_their_gradient_are_those_of_softplus_also_far_from_zero() -> None:
    rng = np.random.default_rng(2)
    logits_BT = (rng.normal(size=(200, 2)) * np.array([1.0, 60.0])).astype(np.float32)
    ones_BT, zeros_BT = rng.normal(size=(2, 200, 2)).astype(np.float32)
    shift_T = np.array([1.5, 0.0], np.float32)
    scores_BT, of_logits_BT, losses_T = np.empty_like(logits_BT), np.empty_like(logits_BT), np.empty(2)
    losses(logits_BT, np.tile(shift_T, (len(logits_BT), 1)), ones_BT, zeros_BT, np.float32(17.0), scores_BT, of_logits_BT, losses_T)
    leaf = torch.from_numpy(logits_BT).double().requires_grad_(True)
    z = leaf + torch.from_numpy(shift_T)
    loss_BT = torch.from_numpy(ones_BT) * -torch.nn.functional.logsigmoid(z) + torch.from_numpy(zeros_BT) * -torch.nn.functional.logsigmoid(
        -z
    )
    (loss_BT.sum() / 17.0).backward()
    np.testing.assert_allclose(scores_BT, torch.sigmoid(z).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(of_logits_BT, leaf.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(losses_T, loss_BT.detach().sum(dim=0).numpy(), rtol=1e-5)


def test_optimizers_are_those_of_torch() -> None:
    rng = np.random.default_rng(3)
    weights_P = rng.normal(size=1_003).astype(np.float32)
    dense, moments = torch.from_numpy(weights_P.copy()).requires_grad_(True), np.zeros((2, 1_003), np.float32)
    of_torch = torch.optim.Adam([dense], lr=1e-2)
    rows_ND, squares_NSD = rng.normal(size=(6, 4)).astype(np.float32), np.full((6, 1, 4), 0.01, np.float32)
    biases, content = (torch.from_numpy(part.copy()).requires_grad_(True) for part in (rows_ND[:, :1], rows_ND[:, 1:]))
    of_rows = torch.optim.Adagrad(
        [{"params": [biases], "lr": 0.05}, {"params": [content], "lr": 0.1}], initial_accumulator_value=0.01, eps=1e-8
    )
    before = rows_ND.copy()
    for step in range(1, 30):
        gradient_P, gradient_UD = rng.normal(size=1_003).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
        square = adam(weights_P, *moments, gradient_P, 1e-2 / (1 - 0.9**step), (0.9, 0.999), 1 - 0.999**step, 1e-8)
        dense.grad = torch.from_numpy(gradient_P)
        of_torch.step()
        slots_U = np.array([0, -1, 2, 3, -1, 5])
        rows_square = adagrad(rows_ND, squares_NSD, slots_U, gradient_UD, 0.1, 0.05, 1, 1e-8)
        gradient_UD[[1, 4]] = 0
        biases.grad, content.grad = torch.from_numpy(gradient_UD[:, :1].copy()), torch.from_numpy(gradient_UD[:, 1:].copy())
        of_rows.step()
        assert square == pytest.approx(float(np.square(gradient_P, dtype=np.float64).sum()), rel=1e-9)
        assert rows_square == pytest.approx(float(np.square(gradient_UD, dtype=np.float64).sum()), rel=1e-9)
    np.testing.assert_allclose(weights_P, dense.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(rows_ND, torch.cat([biases, content], dim=1).detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(rows_ND[[1, 4]], before[[1, 4]])
