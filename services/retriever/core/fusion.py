"""Fuses several rankings by rank alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence

RANK_CONSTANT = 60
"""k of the paper, which found its choice uncritical."""


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], *, limit: int, constant: int = RANK_CONSTANT) -> list[tuple[str, float]]:
    """Return ids with their fused scores, best first; equal scores go to the better rank in the earlier ranking.

    Scores of different kinds (a cosine, a BM25 sum) are never compared: an id scores the sum of 1 / (constant + rank) over the rankings
    that name it, ranks counted from 1.

    Args:
        rankings: ids, best first, each at most once per ranking.
        limit: most ids to return.
        constant: the larger, the less the first ranks matter.
    Source: Cormack, Clarke and Büttcher 2009, Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (constant + rank)
    # sorted is stable, and a dict keeps the order in which the ids were first seen.
    return sorted(scores.items(), key=lambda item: -item[1])[:limit]
