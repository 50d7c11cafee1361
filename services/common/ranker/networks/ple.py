"""PLE: in every level each task mixes experts of its own and shared ones, and the next level goes on from the mixtures.

Source: Tang et al. 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import PleSpec
from services.common.ranker.networks.blocks import Attention, wide, wide_names
from services.common.ranker.networks.dense import Dense, Head, Mlp
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import Names, columns_of, nothing
from services.common.ranker.networks.sequences import SequencePool, attention_or_mean


class Level(nn.Module):
    """One level: the first `num_tasks` of its inputs and outputs are the tasks', the last one is the shared one."""

    def __init__(self, width: int, sizes: PleSpec, num_tasks: int, *, is_last: bool, takes: Names) -> None:
        """`takes`: names of the `width` numbers of each input. The last level's shared mixture would have no reader: it makes none."""
        super().__init__()
        self._num_tasks, self._num_own = num_tasks, sizes.task_experts
        counts = [*[sizes.task_experts] * num_tasks, sizes.shared_experts]
        self.experts = nn.ModuleList(nn.ModuleList(Mlp(width, sizes.hidden, takes=takes) for _ in range(count)) for count in counts)
        seen = [*[sizes.task_experts + sizes.shared_experts] * num_tasks, sum(counts)][: num_tasks + (not is_last)]
        self.gates = nn.ModuleList(Dense(width, count, takes=takes) for count in seen)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return float32 [B, H] per gate; `inputs` are float32 [B, width] per task and the shared one."""
        given = [[expert(x_BX) for expert in experts] for x_BX, experts in zip(inputs, self.experts, strict=True)]
        shared = given[-1]
        mixed = []
        for at, gate in enumerate(self.gates):
            own = given[at] + shared if at < self._num_tasks else [expert_BH for experts in given for expert_BH in experts]
            weights_BE = torch.softmax(gate(inputs[at]), dim=1)
            mixed.append((weights_BE.unsqueeze(2) * torch.stack(own, dim=1)).sum(dim=1))
        return mixed


class Ple(RankerNetwork):
    """Over the inputs of DcnDin."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes, names = sizes_of(spec, PleSpec), wide_names(self.num_content)
        self.attention = Attention(self.num_content, sizes.attention_dim)
        self.levels = nn.ModuleList()
        for at in range(sizes.levels):
            width, takes = (sizes.hidden[-1], nothing) if at else (len(names(columns_of(spec))), names)
            self.levels.append(Level(width, sizes, self.num_tasks, is_last=at == sizes.levels - 1, takes=takes))
        self.towers = nn.ModuleList(Head(sizes.hidden[-1], sizes.tower) for _ in range(self.num_tasks))

    @override
    def pool_of(self, spec: FeatureSpec, sequence: SequenceInputs) -> SequencePool:
        return attention_or_mean(sequence, sizes_of(spec, PleSpec).attention_dim)

    @override
    def deep(self, samples: Samples) -> Tensor:
        mixed = [wide(samples, self.attention(samples))] * (self.num_tasks + 1)
        for level in self.levels:
            mixed = level(mixed)
        return torch.stack([tower(mixed_BH) for tower, mixed_BH in zip(self.towers, mixed, strict=True)], dim=1)
