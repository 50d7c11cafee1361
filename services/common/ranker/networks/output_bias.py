"""Where the logits of a network that has learned nothing begin: at the log-odds of each task's labels, not at one half.

Where one impression in 300 is clicked, a network that begins at one half says too much for as long as its weights take to come down, and a
short file ends before. Any network has the place for it: a bias that moves its task's logit by one, whatever the sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.checks import made_up
from services.common.ranker.networks.interface import Float32Array, RankerNetwork

_TOLERANCE = 1e-4


def begin_at(network: RankerNetwork, spec: FeatureSpec, logits_T: Float32Array) -> list[str]:
    """Add to each task's output bias; return the names of those tasks for which the network has none.

    Args:
        network: just made.
        spec: that it was made of.
        logits_T: float32, what to add, by task.
    """
    biases = _output_biases(network, spec)
    with torch.no_grad():
        for bias, logit in zip(biases, logits_T.tolist(), strict=True):
            if bias is not None:
                bias += logit
    return [task.name for task, bias in zip(spec.tasks, biases, strict=True) if bias is None]


def _output_biases(network: RankerNetwork, spec: FeatureSpec) -> list[Tensor | None]:
    """Return by task a view of the one number that all its logits, and those of no other task, move with one to one.

    Found by trying: the gradient of randomly weighted logits is the sum of the weights, by the task's own logits, and 0 by the others'.
    Of several the last is taken, which in all networks here is the top layer's.
    """
    vectors = [parameter for parameter in network.parameters() if parameter.dim() == 1]
    logits_BT = network.deep(network.samples(*made_up(spec)))
    weights_B = torch.from_numpy(np.random.default_rng(0).normal(size=len(logits_BT)).astype(np.float32))
    wanted = float(weights_B.sum())
    moved = [
        torch.autograd.grad(logits_BT[:, task] @ weights_B, vectors, retain_graph=True, materialize_grads=True)
        for task in range(network.num_tasks)
    ]
    found: list[Tensor | None] = [None] * network.num_tasks
    for at, vector in enumerate(vectors):
        by_task_TV = torch.stack([of_task[at] for of_task in moved])
        is_one_TV = (by_task_TV - wanted).abs() < _TOLERANCE
        is_alone_V = (by_task_TV.abs() > _TOLERANCE).sum(dim=0) == 1
        for task in range(network.num_tasks):
            places = torch.nonzero(is_one_TV[task] & is_alone_V)
            if len(places):
                place = int(places[-1])
                found[task] = vector.detach()[place : place + 1]
    return found
