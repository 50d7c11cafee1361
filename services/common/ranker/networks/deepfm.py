"""DeepFM: a factorisation machine over fields, and an MLP per task over the same fields. Source: Guo et al. 2017.

The fields are the rows of user and item, the means of the history, and each feature: a learned vector times its value. The first order of
ids is the biases that rows carry; that of features is `linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import DeepFmSpec
from services.common.ranker.networks.dense import Dense, Head
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import columns_of, item_columns, numbers, together, user_columns

_NUM_CONTENT_PARTS = 4


class DeepFm(RankerNetwork):
    """All pairs of fields, weighed by task, beside the MLPs."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes, features = sizes_of(spec, DeepFmSpec), together(user_columns, item_columns)
        num_features = len(features(columns_of(spec)))
        self.linear = Dense(num_features, self.num_tasks, takes=features)
        self.vectors = Dense(num_features, self.num_content, takes=features, bias=False)
        self.pairs = Dense(self.num_content, self.num_tasks, bias=False)
        names = together(numbers("content", _NUM_CONTENT_PARTS * self.num_content), features)
        width = len(names(columns_of(spec)))
        self.towers = nn.ModuleList(Head(width, sizes.hidden, takes=names) for _ in range(self.num_tasks))

    @override
    def deep(self, samples: Samples) -> Tensor:
        contents = (samples.user_BC, samples.item_BC, samples.mean_BC, samples.liked_BC)
        features_BN = torch.cat([samples.user_BU, samples.items_BF], dim=1)
        of_features_BC = self.vectors(features_BN)
        # The sum over all pairs of fields is half of the square of the sum less the sum of the squares (Rendle 2010).
        sum_BC = sum(contents) + of_features_BC
        squares_BC = sum(content_BC.square() for content_BC in contents) + features_BN.square() @ self.vectors.weight.square().t()
        pairs_BC = 0.5 * (sum_BC.square() - squares_BC)
        fields_BX = torch.cat([*contents, features_BN], dim=1)
        deep_BT = torch.stack([tower(fields_BX) for tower in self.towers], dim=1)
        return deep_BT + self.linear(features_BN) + self.pairs(pairs_BC)
