"""Where a network that has learned nothing begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.common.ranker.network_spec import NETWORK_NAMES
from services.common.ranker.networks.checks import made_up
from services.common.ranker.networks.interface import RankerNetwork
from services.common.ranker.networks.output_bias import begin_at
from services.common.ranker.networks.registry import make_network
from tests.learning import KEYED, SEQUENCE, SPEC, with_features, with_network

pytestmark = pytest.mark.ml

LOGITS = np.asarray([-5.8, 0.7], np.float32)


def logits(network: RankerNetwork, spec) -> np.ndarray:
    with torch.inference_mode():
        return network(*made_up(spec, (5, 9, 1), seed=7)).numpy()


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("features", [[], [*KEYED, SEQUENCE]])
def test_every_logit_of_a_task_moves_by_just_that_much(name, features):
    spec = with_features(features, network=name) if features else with_network(name)
    network = make_network(spec, seed=3)
    before = logits(network, spec)
    assert begin_at(network, spec, LOGITS) == []
    np.testing.assert_allclose(logits(network, spec) - before, np.broadcast_to(LOGITS, before.shape), atol=1e-5)


class Scaled(RankerNetwork):
    """The first task's bias is scaled, and both tasks share one: neither is a place to begin at."""

    def build(self, spec) -> None:
        self.out = torch.nn.Linear(self.num_content, self.num_tasks, bias=False)
        self.scaled, self.shared = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))

    def deep(self, samples):
        first = torch.tensor([1.0, 0.0])
        return self.out(samples.item_BC) + self.shared + 2.0 * self.scaled * first


def test_a_network_without_a_bias_of_its_output_is_left_alone_and_named():
    network = Scaled(SPEC, seed=3)
    before = network.state()
    assert begin_at(network, SPEC, LOGITS) == list(SPEC.task_names)
    assert all(np.array_equal(before[name], value) for name, value in network.state().items())
