"""What a network must keep to, tried out: the trainer, the ranker and recall rely on it, and would fail late, or silently, without.

Run over a network of one's own whenever it is made (some milliseconds), and over the built-in ones by the tests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs
from services.common.ranker.networks.interface import RankerNetwork, Rows
from services.common.ranker.pooling import Pooled

_GROUPS = (3, 4)
_TOLERANCE = 1e-4


def fault_of(network_class: type[RankerNetwork], spec: FeatureSpec) -> str:
    """Return in words what is wrong with a network; empty when nothing is."""
    if network_class.forward is not RankerNetwork.forward or network_class.state is not RankerNetwork.state:
        return "forward and state are the interface's: recall repeats what forward adds to deep; put your own part into deep"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = network_class(spec, seed=1)
        torch.manual_seed(2)
        again = network_class(spec, seed=1)
    return _fault_of_weights(network, again, len(spec.tasks)) or _fault_of_scores(network, spec)


def made_up(spec: FeatureSpec, sizes: tuple[int, ...] = _GROUPS, *, history: int | None = None, seed: int = 0) -> tuple[RankerInputs, Rows]:
    """Return random inputs and rows of groups of so many samples, each with `history` items in its history (default: as many as fit)."""
    rng = np.random.default_rng(seed)
    length, num_groups, dim = spec.history.length, len(sizes), spec.tables.item.dim
    used = length if history is None else history

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    mask_GL = np.repeat((np.arange(length) < used).astype(np.float32)[None], num_groups, axis=0)
    inputs = RankerInputs(
        user_keys_G=np.arange(num_groups),
        history_keys_GL=np.zeros((num_groups, length), np.int64),
        history_values_GL=rng.random((num_groups, length)).astype(np.float32) * mask_GL,
        history_mask_GL=mask_GL,
        user_GU=numbers(num_groups, len(spec.user_columns)),
        item_keys_B=np.arange(sum(sizes)),
        items_BF=numbers(sum(sizes), len(spec.item_columns)),
        group_B=np.repeat(np.arange(num_groups), sizes),
    )
    history_GLD = torch.from_numpy(numbers(num_groups, length, dim) * mask_GL[..., None])
    rows = Rows(torch.from_numpy(numbers(num_groups, dim)), torch.from_numpy(numbers(sum(sizes), dim)), history_GLD)
    plan = spec.plan
    pooled_V = [sum(one.dim for one in keyed) for keyed in (plan.user_keyed, plan.item_keyed)]
    if not any(pooled_V) and not plan.sequences:
        return inputs, rows
    lengths = [np.full(num_groups, one.length if history is None else min(history, one.length), np.int64) for one in plan.sequences]
    of_sequences = [
        (numbers(int(lengths_G.sum()), one.width), numbers(sum(sizes), one.query_width))
        for one, lengths_G in zip(plan.sequences, lengths, strict=True)
    ]
    pooled = Pooled(numbers(num_groups, pooled_V[0]), numbers(sum(sizes), pooled_V[1]), tuple(of_sequences))
    return replace(inputs, sequence_lengths=tuple(lengths)), rows.with_pooled(pooled)


def group_alone(inputs: RankerInputs, rows: Rows, group: int) -> tuple[RankerInputs, Rows]:
    """Return one group of a batch as a batch of its own."""
    of_group_B, here = inputs.group_B == group, slice(group, group + 1)
    alone = RankerInputs(
        user_keys_G=inputs.user_keys_G[here],
        history_keys_GL=inputs.history_keys_GL[here],
        history_values_GL=inputs.history_values_GL[here],
        history_mask_GL=inputs.history_mask_GL[here],
        user_GU=inputs.user_GU[here],
        item_keys_B=inputs.item_keys_B[of_group_B],
        items_BF=inputs.items_BF[of_group_B],
        group_B=np.zeros(int(of_group_B.sum()), np.int64),
        sequence_lengths=tuple(lengths_G[here] for lengths_G in inputs.sequence_lengths),
    )
    samples_B = torch.from_numpy(of_group_B)
    pooled = (
        None if rows.user_pooled_GV is None else rows.user_pooled_GV[here],
        None if rows.item_pooled_BV is None else rows.item_pooled_BV[samples_B],
        tuple(
            (events[torch.from_numpy(np.repeat(np.arange(len(lengths_G)), lengths_G) == group)], samples[samples_B])
            for (events, samples), lengths_G in zip(rows.sequences, inputs.sequence_lengths, strict=True)
        ),
    )
    return alone, Rows(rows.user_GD[here], rows.item_BD[samples_B], rows.history_GLD[here], *pooled)


def _fault_of_weights(network: RankerNetwork, again: RankerNetwork, num_tasks: int) -> str:
    weights, parameters = network.state_dict(), dict(network.named_parameters())
    if weights.keys() != parameters.keys():
        names = ", ".join(sorted(weights.keys() ^ parameters.keys()))
        return f"{names}: every weight must be a parameter, once; buffers and shared parameters are neither learned nor published"
    other = [name for name, value in parameters.items() if value.dtype != torch.float32 or not value.requires_grad]
    if other:
        return f"{', '.join(other)}: every parameter must be float32 and require a gradient"
    if "dot_scale" not in parameters or parameters["dot_scale"].shape != (num_tasks,):
        return "dot_scale is the interface's and must be there, one number a task: recall reads it"
    unequal = [name for name, value in again.state_dict().items() if not torch.equal(value, weights[name])]
    if unequal:
        return f"{', '.join(unequal)}: two networks of one seed differ; set weights from a torch.Generator that is seeded with `seed`"
    return ""


def _fault_of_scores(network: RankerNetwork, spec: FeatureSpec) -> str:
    inputs, rows = made_up(spec)
    deep_BT = network.train().deep(network.samples(inputs, rows))
    wanted = (sum(_GROUPS), len(spec.tasks))
    if not isinstance(deep_BT, Tensor) or deep_BT.shape != wanted or deep_BT.dtype != torch.float32:
        there = f"{deep_BT.dtype} {tuple(deep_BT.shape)}" if isinstance(deep_BT, Tensor) else repr(deep_BT)[:100]
        return f"deep must return float32 [samples, tasks]: of {wanted[0]} samples it returns {there}, not float32 {wanted}"
    logits_BT = network(inputs, rows)
    names = [name for name, _ in network.named_parameters()]
    gradients = torch.autograd.grad(logits_BT.square().sum(), list(network.parameters()), allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if unused:
        return f"{', '.join(unused)}: deep does not use it; a parameter without a gradient cannot be learned"
    with torch.inference_mode():
        for how in ("a second time", "for scoring"):
            if not torch.allclose(network.train(how != "for scoring")(inputs, rows), logits_BT, atol=_TOLERANCE):
                return f"other logits {how}: a network has no randomness (dropout) and does the same in training and in scoring"
        for group in range(len(_GROUPS)):
            alone_BT = network(*group_alone(inputs, rows, group))
            if not torch.allclose(alone_BT, logits_BT[torch.from_numpy(inputs.group_B == group)], atol=_TOLERANCE):
                return "a group scores otherwise beside others than alone: samples must not see each other (as in BatchNorm)"
        for size, history in ((1, 0), (1, None), (5, 0)):
            if not torch.isfinite(network(*made_up(spec, (size,), history=history))).all():
                return f"logits are not finite for {size} samples with {'an empty' if history == 0 else 'a full'} history"
    return ""
