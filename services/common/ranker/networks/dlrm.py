"""DLRM: features through a bottom MLP to a vector like a row's, dot products of all pairs of vectors, a top MLP per task.

The vectors are the bottom MLP's, user, item, and the means of the history. Source: Naumov et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import DlrmSpec
from services.common.ranker.networks.dense import Head, Mlp
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import columns_of, item_columns, together, user_columns

_NUM_VECTORS = 5


class Dlrm(RankerNetwork):
    """One bottom, and one top per task."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes, features = sizes_of(spec, DlrmSpec), together(user_columns, item_columns)
        self.bottom = Mlp(len(features(columns_of(spec))), (*sizes.bottom, self.num_content), takes=features)
        width = self.num_content + _NUM_VECTORS * (_NUM_VECTORS - 1) // 2
        self.tops = nn.ModuleList(Head(width, sizes.top) for _ in range(self.num_tasks))

    @override
    def deep(self, samples: Samples) -> Tensor:
        bottom_BC = self.bottom(torch.cat([samples.user_BU, samples.items_BF], dim=1))
        vectors = [bottom_BC, samples.user_BC, samples.item_BC, samples.mean_BC, samples.liked_BC]
        products_B = [(one * other).sum(dim=1) for at, one in enumerate(vectors) for other in vectors[:at]]
        x_BX = torch.cat([bottom_BC, torch.stack(products_B, dim=1)], dim=1)
        return torch.stack([top(x_BX) for top in self.tops], dim=1)
