"""MMoE: experts that all tasks share, mixed by a gate per task, with a small MLP per task on top. Source: Ma et al. 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import MmoeSpec
from services.common.ranker.networks.blocks import Attention, wide, wide_names
from services.common.ranker.networks.dense import Dense, Head, Mlp
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import columns_of
from services.common.ranker.networks.sequences import SequencePool, attention_or_mean


class Mmoe(RankerNetwork):
    """Over the inputs of DcnDin."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes, names = sizes_of(spec, MmoeSpec), wide_names(self.num_content)
        width = len(names(columns_of(spec)))
        self.attention = Attention(self.num_content, sizes.attention_dim)
        self.experts = nn.ModuleList(Mlp(width, sizes.hidden, takes=names) for _ in range(sizes.experts))
        self.gates = nn.ModuleList(Dense(width, sizes.experts, takes=names) for _ in range(self.num_tasks))
        self.towers = nn.ModuleList(Head(sizes.hidden[-1], sizes.tower) for _ in range(self.num_tasks))

    @override
    def pool_of(self, spec: FeatureSpec, sequence: SequenceInputs) -> SequencePool:
        return attention_or_mean(sequence, sizes_of(spec, MmoeSpec).attention_dim)

    @override
    def deep(self, samples: Samples) -> Tensor:
        x0_BX = wide(samples, self.attention(samples))
        experts_BEH = torch.stack([expert(x0_BX) for expert in self.experts], dim=1)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            mixed_BH = (torch.softmax(gate(x0_BX), dim=1).unsqueeze(2) * experts_BEH).sum(dim=1)
            logits.append(tower(mixed_BH))
        return torch.stack(logits, dim=1)
