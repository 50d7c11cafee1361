"""From the events of a declared sequence to numbers about a candidate: the events pooled, and their product with the candidate.

Which pooling is the network's choice (`RankerNetwork.pool_of`). The numbers are further inputs of the item's side, named by
`SequenceInputs.columns`, so every network takes them. Shapes: G requests, B candidates, P events of all requests, L events of the longest,
W numbers of an event, Q of them that a candidate has as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.networks.dense import Dense, Mlp
from services.common.ranker.networks.groups import attention_weights, dot_products, of_samples, weighted_sums
from services.common.ranker.networks.names import Axes, nothing


@dataclass(frozen=True, slots=True)
class Events:
    """One sequence of all requests, padded, and the candidates."""

    events_GLW: Tensor
    is_there_GL: Tensor
    candidates_BQ: Tensor
    group_B: Tensor

    @classmethod
    def of(cls, events_PW: Tensor, lengths_G: Tensor, candidates_BQ: Tensor, group_B: Tensor) -> Events:
        """Pad; `lengths_G` are int64 and sum to P."""
        longest = max(int(lengths_G.max()), 1)
        is_there_GL = torch.arange(longest) < lengths_G.unsqueeze(1)
        events_GLW = events_PW.new_zeros((*is_there_GL.shape, events_PW.shape[1]))
        events_GLW[is_there_GL] = events_PW
        return cls(events_GLW, is_there_GL, candidates_BQ, group_B)


class SequencePool(nn.Module):
    """Pools one sequence by weights that a subclass gives the events."""

    def __init__(self, sequence: SequenceInputs) -> None:
        """`sequence` says how wide things are."""
        super().__init__()
        self._query_places = list(sequence.query_places)

    def weights(self, seen: Events) -> Tensor:
        """Return float32 [B, L]; 0 for padding."""
        raise NotImplementedError

    def forward(self, seen: Events) -> Tensor:
        """Return float32 [B, W + Q]."""
        pooled_BW = weighted_sums(self.weights(seen), seen.events_GLW, seen.group_B)
        return torch.cat([pooled_BW, pooled_BW[:, self._query_places] * seen.candidates_BQ], dim=1)


class Mean(SequencePool):
    """All events alike, whichever the candidate; nothing is learned."""

    @override
    def weights(self, seen: Events) -> Tensor:
        there_GL = seen.is_there_GL.to(seen.events_GLW.dtype)
        return of_samples(there_GL / there_GL.sum(dim=1, keepdim=True).clamp(min=1.0), seen.group_B)


class AttentionPool(SequencePool):
    """By how much an event resembles the candidate, as `blocks.attend` does. Sources: Vaswani et al. 2017, Zhou et al. 2018."""

    def __init__(self, sequence: SequenceInputs, attention_dim: int) -> None:
        """`attention_dim`: of queries and keys."""
        super().__init__(sequence)
        self.query = Dense(sequence.query_width, attention_dim, bias=False)
        self.key = Dense(sequence.width, attention_dim, bias=False)
        self.null_score = nn.Parameter(torch.zeros(1))

    @override
    def weights(self, seen: Events) -> Tensor:
        scores_BL = dot_products(self.query(seen.candidates_BQ), self.key(seen.events_GLW), seen.group_B)
        return attention_weights(scores_BL / self.query.out_features**0.5, seen.is_there_GL, self.null_score, seen.group_B)

    def own_axes(self) -> dict[str, Axes]:
        """Say that no input lies along the null entry."""
        return {"null_score": (nothing,)}


class UnitPool(SequencePool):
    """By a small network over event, candidate and their product; the weights are not normalised. Source: Zhou et al. 2018."""

    def __init__(self, sequence: SequenceInputs, hidden: Sequence[int]) -> None:
        """`hidden`: layers of the small network."""
        super().__init__(sequence)
        self.unit = Mlp(sequence.width + 2 * sequence.query_width, hidden)
        self.weight = Dense(self.unit.width, 1)

    @override
    def weights(self, seen: Events) -> Tensor:
        events_BLW = of_samples(seen.events_GLW, seen.group_B)
        candidates_BLQ = seen.candidates_BQ.unsqueeze(1).expand(-1, events_BLW.shape[1], -1)
        unit_BLV = torch.cat([events_BLW, candidates_BLQ, events_BLW[..., self._query_places] * candidates_BLQ], dim=2)
        return self.weight(self.unit(unit_BLV)).squeeze(2) * of_samples(seen.is_there_GL, seen.group_B)


def attention_or_mean(sequence: SequenceInputs, attention_dim: int) -> SequencePool:
    """Return attention, or the mean where a candidate has nothing that could be compared with an event."""
    return AttentionPool(sequence, attention_dim) if sequence.queries else Mean(sequence)
