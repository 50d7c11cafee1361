"""DIN: a small network weighs each item of the history against the candidate; rows, weighted sum and features go through an MLP per task.

The weights are not normalised: their sum says how much of the history is about the candidate. Source: Zhou et al. 2018. It differs from
the paper in its ReLU (there Dice, which needs statistics of batches, so that samples would see each other).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import DinSpec
from services.common.ranker.networks.blocks import pooled
from services.common.ranker.networks.dense import Dense, Head, Mlp
from services.common.ranker.networks.groups import of_samples
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import columns_of, item_columns, numbers, together, user_columns
from services.common.ranker.networks.sequences import Mean, SequencePool, UnitPool


class Din(RankerNetwork):
    """One activation unit, and one MLP per task."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes = sizes_of(spec, DinSpec)
        self.unit = Mlp(3 * self.num_content + 1, sizes.unit_hidden)
        self.weight = Dense(self.unit.width, 1)
        names = together(numbers("content", 3 * self.num_content), numbers("history", 2), user_columns, item_columns)
        width = len(names(columns_of(spec)))
        self.towers = nn.ModuleList(Head(width, sizes.hidden, takes=names) for _ in range(self.num_tasks))

    @override
    def pool_of(self, spec: FeatureSpec, sequence: SequenceInputs) -> SequencePool:
        return UnitPool(sequence, sizes_of(spec, DinSpec).unit_hidden) if sequence.queries else Mean(sequence)

    @override
    def deep(self, samples: Samples) -> Tensor:
        history_BLC = of_samples(samples.history_GLC, samples.group_B)
        value_BL1 = of_samples(samples.centred_GL, samples.group_B).unsqueeze(2)
        item_BLC = samples.item_BC.unsqueeze(1).expand_as(history_BLC)
        unit_BLV = torch.cat([history_BLC, item_BLC, history_BLC * item_BLC, value_BL1], dim=2)
        weights_BL = self.weight(self.unit(unit_BLV)).squeeze(2) * of_samples(samples.mask_GL, samples.group_B)
        attended = pooled(weights_BL, samples)
        parts = [samples.user_BC, samples.item_BC, *attended, samples.user_BU, samples.items_BF]
        return torch.stack([tower(torch.cat(parts, dim=1)) for tower in self.towers], dim=1)
