"""Two towers: the dot product of user and item, plus what an MLP per side says of its side alone. Source: Yi et al. 2019.

Recall by embedding finds what this network ranks first, but for the item side's MLP: recall knows an item's row and bias, and the features
of an item are there only when it is scored. A tower whose output were the recall vector would need them for every item of the catalogue.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import TwoTowerSpec
from services.common.ranker.networks.dense import Dense, Mlp
from services.common.ranker.networks.interface import RankerNetwork, Samples, sizes_of
from services.common.ranker.networks.names import columns_of, item_columns, numbers, together, user_columns


class TwoTower(RankerNetwork):
    """Nothing crosses the sides but the dot product, which is the interface's."""

    @override
    def build(self, spec: FeatureSpec) -> None:
        sizes, columns = sizes_of(spec, TwoTowerSpec), columns_of(spec)
        of_user = together(numbers("user content", 3 * self.num_content), user_columns)
        of_item = together(numbers("item content", self.num_content), item_columns)
        self.user = Mlp(len(of_user(columns)), sizes.hidden, takes=of_user)
        self.item = Mlp(len(of_item(columns)), sizes.hidden, takes=of_item)
        self.user_out = Dense(self.user.width, self.num_tasks)
        self.item_out = Dense(self.item.width, self.num_tasks)

    @override
    def deep(self, samples: Samples) -> Tensor:
        user_BX = torch.cat([samples.user_BC, samples.mean_BC, samples.liked_BC, samples.user_BU], dim=1)
        item_BX = torch.cat([samples.item_BC, samples.items_BF], dim=1)
        return self.user_out(self.user(user_BX)) + self.item_out(self.item(item_BX))
