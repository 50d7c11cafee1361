"""Parts that networks share: attention over the history, everything side by side, cross layers. A attention dimensions, X inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.common.ranker.networks.dense import Dense
from services.common.ranker.networks.groups import attention_weights, dot_products, weighted_sums
from services.common.ranker.networks.interface import Samples
from services.common.ranker.networks.names import Axes, Names, item_columns, nothing, numbers, together, user_columns

# Parts of `wide` that are as wide as a row's content: user, item, pooled history, and four products.
_NUM_CONTENT_PARTS = 7


class Attended(NamedTuple):
    """What a candidate sees of its user's history: the pooled contents, the pooled value, and the share that the history took."""

    pooled_BC: Tensor
    value_B1: Tensor
    share_B1: Tensor


def attend(query: nn.Linear, key: nn.Linear, null_score: Tensor, samples: Samples) -> Attended:
    """Pool the history by how much each of its items resembles the candidate.

    A learned null entry takes its share, so that nothing similar gives nothing. Source: Vaswani et al. 2017 for the products of queries and
    keys, Zhou et al. 2018 for the candidate as query.

    Args:
        query: of an item's content, C -> A.
        key: of a history entry's content and centred value, C + 1 -> A.
        null_score: float32 [1].
        samples: of the batch.
    """
    group_B = samples.group_B
    history_GLV = torch.cat([samples.history_GLC, samples.centred_GL.unsqueeze(2)], dim=2)
    scores_BL = dot_products(query(samples.item_BC), key(history_GLV), group_B) / query.out_features**0.5
    return pooled(attention_weights(scores_BL, samples.mask_GL > 0, null_score, group_B), samples)


class Attention(nn.Module):
    """`attend` with weights of its own."""

    def __init__(self, num_content: int, attention_dim: int) -> None:
        super().__init__()
        self.query = Dense(num_content, attention_dim, bias=False)
        self.key = Dense(num_content + 1, attention_dim, bias=False)
        self.null_score = nn.Parameter(torch.zeros(1))

    def forward(self, samples: Samples) -> Attended:
        """Return what the samples see of their histories."""
        return attend(self.query, self.key, self.null_score, samples)

    def own_axes(self) -> dict[str, Axes]:
        """Say that no input lies along the null entry."""
        return {"null_score": (nothing,)}


def pooled(weights_BL: Tensor, samples: Samples) -> Attended:
    """Sum the history up by weights; those of padding must be 0."""
    history_GLV = torch.cat([samples.history_GLC, samples.centred_GL.unsqueeze(2)], dim=2)
    sums_BV = weighted_sums(weights_BL, history_GLV, samples.group_B)
    return Attended(sums_BV[:, :-1], sums_BV[:, -1:], weights_BL.sum(dim=1, keepdim=True))


def wide(samples: Samples, attended: Attended) -> Tensor:
    """Return everything that is known of a sample side by side, float32 [B, X], named by `wide_names`."""
    item_BC = samples.item_BC
    return torch.cat(
        [
            samples.user_BC,
            item_BC,
            attended.pooled_BC,
            samples.user_BC * item_BC,
            attended.pooled_BC * item_BC,
            samples.mean_BC * item_BC,
            samples.liked_BC * item_BC,
            attended.value_B1,
            attended.share_B1,
            samples.user_BU,
            samples.items_BF,
        ],
        dim=1,
    )


def wide_names(num_content: int) -> Names:
    """Return the names of what `wide` returns."""
    return together(numbers("content", _NUM_CONTENT_PARTS * num_content), numbers("history", 2), user_columns, item_columns)


class CrossTower(nn.Module):
    """One task's own cross layers and MLP; returns a logit. Source: Wang et al. 2021 (DCNv2)."""

    def __init__(self, width: int, hidden: Sequence[int], *, cross_layers: int, takes: Names) -> None:
        """`width`: numbers that it takes; `takes`: their names."""
        super().__init__()
        self.cross = nn.ModuleList(Dense(width, width, takes=takes, gives=takes) for _ in range(cross_layers))
        self.hidden = nn.ModuleList()
        for at, size in enumerate(hidden):
            self.hidden.append(Dense(hidden[at - 1] if at else width, size, takes=nothing if at else takes))
        self.out = Dense(width + hidden[-1], 1, takes=takes)

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Return logits [B] of inputs [B, X]."""
        crossed_BX = x0_BX
        for layer in self.cross:
            crossed_BX = crossed_BX + x0_BX * layer(crossed_BX)
        deep = x0_BX
        for layer in self.hidden:
            deep = functional.relu(layer(deep))
        return self.out(torch.cat([crossed_BX, deep], dim=1)).squeeze(1)
