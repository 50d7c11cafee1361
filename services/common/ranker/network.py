"""The ranking network: one torch definition for the trainer and the Triton backend. Rows come in as inputs; it owns the dense part.

Inside: attention of every candidate over the user's history (DIN), cross layers (DCNv2) and an MLP per task, and an explicit dot product
of user and item, which nearest-neighbour recall repeats without the network. It knows no ids, tables, labels or optimizers.

Shapes: G users, B samples (each belongs to one user), L history length, D row dimension, T tasks, U user features, F item features,
C = D - T content dimensions (the first T of every row are that task's bias).
Sources: Zhou et al. 2018 (DIN), Wang et al. 2021 (DCNv2), Ma et al. 2018 (ESMM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs, network_inputs

Float32Array = npt.NDArray[np.float32]
Precision = Literal["fp32", "bf16"]

ATTENTION_DIM = 16
HIDDEN = (64, 32)

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Items of a request, from a short list to the most that the recommender takes by default.
_MEASURED_SIZES = (20, 100, 500)
_MEASURED_RUNS = 15
_PLAINLY_FASTER = 1.2


class Rows(NamedTuple):
    """Embedding rows that belong to a RankerInputs."""

    user_GD: Tensor
    item_BD: Tensor
    history_GLD: Tensor


class Tower(nn.Module):
    """One task's own cross layers and MLP; returns a logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.hidden = nn.ModuleList([nn.Linear(width, HIDDEN[0]), nn.Linear(HIDDEN[0], HIDDEN[1])])
        self.out = nn.Linear(width + HIDDEN[1], 1)

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Return logits [B] of inputs [B, X]."""
        crossed_BX = x0_BX
        for layer in self.cross:
            crossed_BX = crossed_BX + x0_BX * layer(crossed_BX)
        deep = x0_BX
        for layer in self.hidden:
            deep = functional.relu(layer(deep))
        return self.out(torch.cat([crossed_BX, deep], dim=1)).squeeze(1)


class RankerNetwork(nn.Module):
    """The dense part. Two networks of the same spec and seed are equal."""

    def __init__(self, spec: FeatureSpec, seed: int = 0) -> None:
        super().__init__()
        self.num_tasks = len(spec.tasks)
        dim = spec.tables.item.dim
        content = dim - self.num_tasks
        self.query = nn.Linear(content, ATTENTION_DIM, bias=False)
        self.key = nn.Linear(content + 1, ATTENTION_DIM, bias=False)
        self.null_score = nn.Parameter(torch.zeros(1))
        width = len(network_inputs(content, spec.user_columns, spec.item_columns))
        self.towers = nn.ModuleList(Tower(width) for _ in range(self.num_tasks))
        self.dot_scale = nn.Parameter(torch.ones(self.num_tasks))
        _initialise(self, seed)

    def forward(self, inputs: RankerInputs, rows: Rows) -> Tensor:
        """Return logits [B, T]; their sigmoid is the calibrated probability of each task."""
        group_B = torch.from_numpy(inputs.group_B)
        mask_GL = torch.from_numpy(inputs.history_mask_GL)
        centred_GL = (torch.from_numpy(inputs.history_values_GL) - 0.5) * mask_GL
        bias = self.num_tasks
        user_GC, item_BC, history_GLC = rows.user_GD[:, bias:], rows.item_BD[:, bias:], rows.history_GLD[..., bias:]
        num_G1 = mask_GL.sum(dim=1, keepdim=True).clamp(min=1.0)
        history_mean_GC = (history_GLC * mask_GL.unsqueeze(2)).sum(dim=1) / num_G1
        liked_mean_GC = (history_GLC * centred_GL.unsqueeze(2)).sum(dim=1) / num_G1
        weights_BL = self._attention(item_BC, history_GLC, centred_GL, mask_GL, group_B)
        pooled_BV = _weighted_sums(weights_BL, torch.cat([history_GLC, centred_GL.unsqueeze(2)], dim=2), group_B)
        pooled_BC, similar_value_B1 = pooled_BV[:, :-1], pooled_BV[:, -1:]
        user_BC, mean_BC, liked_BC = (_of_samples(part_GC, group_B) for part_GC in (user_GC, history_mean_GC, liked_mean_GC))
        x0_BX = torch.cat(
            [
                user_BC,
                item_BC,
                pooled_BC,
                user_BC * item_BC,
                pooled_BC * item_BC,
                mean_BC * item_BC,
                liked_BC * item_BC,
                similar_value_B1,
                weights_BL.sum(dim=1, keepdim=True),
                _of_samples(torch.from_numpy(inputs.user_GU), group_B),
                torch.from_numpy(inputs.items_BF),
            ],
            dim=1,
        )
        deep_BT = torch.stack([tower(x0_BX) for tower in self.towers], dim=1)
        dot_B1 = ((user_BC + mean_BC) * item_BC).sum(dim=1, keepdim=True)
        return deep_BT + self.dot_scale * dot_B1 + _of_samples(rows.user_GD[:, :bias], group_B) + rows.item_BD[:, :bias]

    def _attention(self, item_BC: Tensor, history_GLC: Tensor, centred_GL: Tensor, mask_GL: Tensor, group_B: Tensor) -> Tensor:
        """Return weights [B, L] over the history. A learned null entry takes its share, so that nothing similar gives nothing."""
        keys_GLA = self.key(torch.cat([history_GLC, centred_GL.unsqueeze(2)], dim=2))
        scores_BL = _dot_products(self.query(item_BC), keys_GLA, group_B) / ATTENTION_DIM**0.5
        scores_BL = scores_BL.masked_fill(_of_samples(mask_GL == 0, group_B), float("-inf"))
        null_B1 = self.null_score.expand(len(scores_BL), 1)
        return torch.softmax(torch.cat([scores_BL, null_B1], dim=1), dim=1)[:, :-1]

    def input_axes(self) -> dict[str, tuple[int, ...]]:
        """Return by weight, in the order of `state`, the axes along which the towers' inputs lie, before whatever else lies there.

        When columns are added or dropped, what was learned of the others stays by these.
        """
        axes: dict[str, tuple[int, ...]] = {}
        for name, value in self.state_dict().items():
            if ".cross." in name:
                axes[name] = tuple(range(value.dim()))
            else:
                axes[name] = (1,) if name.endswith((".hidden.0.weight", ".out.weight")) else ()
        return axes

    def state(self) -> dict[str, Float32Array]:
        """Return copies of the weights by name."""
        return {name: value.detach().float().numpy().copy() for name, value in self.state_dict().items()}

    def load(self, tensors: Mapping[str, Float32Array]) -> None:
        """Replace the weights by what `state` returned.

        Raises:
            CorruptArtifact: a name or shape is not this network's.
        """
        own = self.state_dict()
        if own.keys() != tensors.keys():
            raise CorruptArtifact(f"dense weights: names differ from this network's: {sorted(own.keys() ^ tensors.keys())}")
        for name, value in tensors.items():
            if own[name].shape != value.shape:
                raise CorruptArtifact(f"dense weights: {name} has shape {value.shape}, want {tuple(own[name].shape)}")
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(torch.tensor(value))


# A request is one group: its user and history are the same for all samples and need not be copied to each.


def _of_samples(part_G: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, ...]: of every sample the entry of its group."""
    return part_G.expand(len(group_B), *part_G.shape[1:]) if len(part_G) == 1 else part_G[group_B]


def _dot_products(query_BA: Tensor, keys_GLA: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, L]: every sample's query with the keys of its group."""
    if len(keys_GLA) == 1:
        return query_BA @ keys_GLA[0].t()
    return torch.einsum("ba,bla->bl", query_BA, keys_GLA[group_B])


def _weighted_sums(weights_BL: Tensor, values_GLV: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, V]: the sums of the values of a sample's group by the sample's weights."""
    if len(values_GLV) == 1:
        return weights_BL @ values_GLV[0]
    return torch.einsum("bl,blv->bv", weights_BL, values_GLV[group_B])


def score(network: RankerNetwork, inputs: RankerInputs, rows: Rows, *, precision: Precision = "fp32") -> Float32Array:
    """Return float32 [B, T]: calibrated probabilities.

    Args:
        precision: of the matrix products; the sums of dot product and biases, which decide between close items, are fp32 in any case.
    """
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        scores_BT: Float32Array = torch.sigmoid(network(inputs, rows).float()).numpy()
    return scores_BT


def has_bf16() -> bool:
    """Say whether this CPU multiplies bf16 itself; elsewhere bf16 is emulated, and always slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def faster_precision(run: Callable[[Precision, int], object], clock: Callable[[], float]) -> Precision:
    """Return the precision to score in on this machine: bf16 only if it is plainly faster at every size of a request.

    Whether a CPU has instructions for bf16 does not tell: the network's products are small, and casting may cost more than they save.
    Each size is run in both precisions in turn, and the shortest times are compared, which another process on the same cores disturbs
    least. With times that are up to ten times as long at random, bf16 was never chosen in 2,000 draws in which it was equally fast, and
    in 99 % of those in which it took half the time (tests/unit/services/common/ranker/test_precision.py).

    Args:
        run: scores so many items in a precision.
        clock: seconds.
    """
    for num_items in _MEASURED_SIZES:
        shortest = dict.fromkeys(("fp32", "bf16"), math.inf)
        for _ in range(_MEASURED_RUNS):
            for precision in _PRECISIONS:
                started = clock()
                run(precision, num_items)
                shortest[precision] = min(shortest[precision], clock() - started)
        if shortest["bf16"] * _PLAINLY_FASTER > shortest["fp32"]:
            return "fp32"
    return "bf16"


def _initialise(network: nn.Module, seed: int) -> None:
    """Set all weights from a generator of their own, whatever torch's global one did before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, Tower):
                for layer in module.cross:
                    layer.weight.mul_(0.1)
                module.out.weight.mul_(0.1)
