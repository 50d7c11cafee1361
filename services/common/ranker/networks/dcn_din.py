"""DCNv2 + DIN: attention of every candidate over the user's history, then cross layers and an MLP per task over everything side by side.

Sources: Zhou et al. 2018 (DIN), Wang et al. 2021 (DCNv2), Ma et al. 2018 (ESMM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import network_inputs
from services.common.ranker.networks.blocks import ATTENTION_DIM, CrossTower, attend, wide
from services.common.ranker.networks.interface import RankerNetwork, Samples


class DcnDin(RankerNetwork):
    """One tower per task over the same inputs."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        self.query = nn.Linear(self.num_content, ATTENTION_DIM, bias=False)
        self.key = nn.Linear(self.num_content + 1, ATTENTION_DIM, bias=False)
        self.null_score = nn.Parameter(torch.zeros(1))
        width = len(network_inputs(self.num_content, spec.user_columns, spec.item_columns))
        self.towers = nn.ModuleList(CrossTower(width) for _ in range(self.num_tasks))

    @override
    def deep(self, samples: Samples) -> Tensor:
        x0_BX = wide(samples, attend(self.query, self.key, self.null_score, samples))
        return torch.stack([tower(x0_BX) for tower in self.towers], dim=1)

    @override
    def input_axes(self) -> dict[str, tuple[int, ...]]:
        axes: dict[str, tuple[int, ...]] = {}
        for name, value in self.state_dict().items():
            if ".cross." in name:
                axes[name] = tuple(range(value.dim()))
            else:
                axes[name] = (1,) if name.endswith((".hidden.0.weight", ".out.weight")) else ()
        return axes
