"""The job in two BentoML services, features and ranking, each in a process of its own.

Run by `bentoml serve loadtests.bench_peers.bentoml_app:Recommend` in the peer's environment.
"""

from __future__ import annotations

from typing import Any

import bentoml  # type: ignore[import-not-found]  # of the peer's environment

from loadtests.bench_peers.job import MOST_TOGETHER, Ranker, Reader, answer, packed

_TRAFFIC = {"timeout": 60}
_LOGGING = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic=_TRAFFIC, logging=_LOGGING)
class Rank:
    """Scores; calls that wait are taken together."""

    def __init__(self) -> None:
        self._ranker = Ranker()

    @bentoml.api(batchable=True, max_batch_size=MOST_TOGETHER, max_latency_ms=60_000)  # type: ignore[untyped-decorator]  # of a package that is not there when types are checked
    def score(self, calls: list[Any]) -> list[Any]:
        """Return the scores of each call."""
        return list(self._ranker.scores([self._ranker.unpacked(call) for call in calls]))


@bentoml.service(workers=1, traffic=_TRAFFIC, logging=_LOGGING)
class Recommend:
    """Reads states, makes features, and asks the other service."""

    rank = bentoml.depends(Rank)

    def __init__(self) -> None:
        self._reader = Reader()

    @bentoml.api  # type: ignore[untyped-decorator]  # as above
    async def recommend(self, user_id: str, candidates: list[str]) -> dict[str, Any]:
        """Answer a request."""
        asked = await self._reader.asked(user_id, candidates)
        [scores_NT] = await self.rank.to_async.score([packed(self._reader.spec, asked)])
        return answer(self._reader.spec, candidates, scores_NT)
