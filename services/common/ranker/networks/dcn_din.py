"""DCNv2 + DIN: attention of every candidate over the user's history, then cross layers and an MLP per task over everything side by side.

Sources: Zhou et al. 2018 (DIN), Wang et al. 2021 (DCNv2), Ma et al. 2018 (ESMM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import DcnDinSpec
from services.common.ranker.networks.blocks import CrossTower, attend, wide, wide_names
from services.common.ranker.networks.dense import Dense
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import Axes, columns_of, nothing
from services.common.ranker.networks.sequences import SequencePool, attention_or_mean


class DcnDin(RankerNetwork):
    """One tower per task over the same inputs. The names and the order of its weights are those of the artifacts that are out there."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes = sizes_of(spec, DcnDinSpec)
        self.query = Dense(self.num_content, sizes.attention_dim, bias=False)
        self.key = Dense(self.num_content + 1, sizes.attention_dim, bias=False)
        self.null_score = nn.Parameter(torch.zeros(1))
        names = wide_names(self.num_content)
        width = len(names(columns_of(spec)))
        self.towers = nn.ModuleList(
            CrossTower(width, sizes.hidden, cross_layers=sizes.cross_layers, takes=names) for _ in range(self.num_tasks)
        )

    @override
    def pool_of(self, spec: FeatureSpec, sequence: SequenceInputs) -> SequencePool:
        return attention_or_mean(sequence, sizes_of(spec, DcnDinSpec).attention_dim)

    @override
    def deep(self, samples: Samples) -> Tensor:
        x0_BX = wide(samples, attend(self.query, self.key, self.null_score, samples))
        return torch.stack([tower(x0_BX) for tower in self.towers], dim=1)

    @override
    def own_axes(self) -> dict[str, Axes]:
        return super().own_axes() | {"null_score": (nothing,)}
