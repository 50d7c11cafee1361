"""What belongs to a group (a request: its user, history, sequences), as each of its samples sees it. A request alone is copied to none.

Shapes: G groups, B samples, L entries of a history or sequence, A attention dimensions, V numbers of an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor


def of_samples(part_G: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, ...]: of every sample the entry of its group.

    A request is one group: its user and history are the same for all samples and need not be copied to each.
    """
    return part_G.expand(len(group_B), *part_G.shape[1:]) if len(part_G) == 1 else part_G[group_B]


def dot_products(query_BA: Tensor, keys_GLA: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, L]: every sample's query with the keys of its group."""
    if len(keys_GLA) == 1:
        return query_BA @ keys_GLA[0].t()
    return torch.einsum("ba,bla->bl", query_BA, keys_GLA[group_B])


def weighted_sums(weights_BL: Tensor, values_GLV: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, V]: the sums of the values of a sample's group by the sample's weights."""
    if len(values_GLV) == 1:
        return weights_BL @ values_GLV[0]
    return torch.einsum("bl,blv->bv", weights_BL, values_GLV[group_B])


def attention_weights(scores_BL: Tensor, is_there_GL: Tensor, null_score: Tensor, group_B: Tensor) -> Tensor:
    """Return [B, L], at most 1 together: a learned null entry takes its share, so that nothing similar gives nothing; padding gets 0."""
    scores_BL = scores_BL.masked_fill(of_samples(~is_there_GL, group_B), float("-inf"))
    null_B1 = null_score.expand(len(scores_BL), 1)
    return torch.softmax(torch.cat([scores_BL, null_B1], dim=1), dim=1)[:, :-1]
