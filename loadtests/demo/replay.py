"""Replays users' sessions as live traffic: score a block, then report it, then wait the user's gap.

Knows nothing of processes, plots or confidence intervals; it leaves a list of outcomes.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tritonclient.utils import InferenceServerException

from loadtests.demo.client import MeshClient
from loadtests.demo.plan import GAP_CAP_S, Block, Session
from loadtests.demo.probe import FreshnessProbe, RowState
from loadtests.metrics import OnlineCounters, ndcg_of_target
from loadtests.movielens import CandidateDrawer, Rating
from tunemesh_client import Feedback, Recommendation

LIKE_STARS = 4.0
OPEN_EVERY = 50  # events per open recommendation
OPEN_LIMIT = 10
PROBE_EVERY = 100  # events per freshness probe


@dataclass(slots=True)
class Outcome:
    """One event, scored before it was reported. The live numbers are None when the answer was degraded."""

    request_id: str
    user_id: str
    item_id: str
    stars: float
    at_s: float
    model_version: str
    live_like: float | None
    live_ndcg: float | None
    means: float
    popularity_ndcg: float


@dataclass(slots=True)
class ReplayLog:
    """All that the replay saw."""

    outcomes: list[Outcome] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)  # feedback_id -> accepted_at_ms
    degraded: dict[str, int] = field(default_factory=dict)  # reason -> answers
    open_answers: int = 0
    open_items: int = 0
    open_seen_items: int = 0  # items offered although the user had rated them well before: must stay 0
    open_reasons: dict[str, int] = field(default_factory=dict)
    last_version: str = ""


class Replay:
    """Plays sessions, `active` at once, against the mesh."""

    def __init__(
        self,
        client: MeshClient,
        probe: FreshnessProbe,
        candidates: CandidateDrawer,
        counters: OnlineCounters,
        *,
        speed: float,
        active: int,
        max_events: int,
        settle_s: float = 10.0,
    ) -> None:
        """`speed` divides every gap; a rating older than `settle_s` must have reached the seen-item filter."""
        self._client, self._probe, self._candidates, self._counters = client, probe, candidates, counters
        self._speed, self._active, self._max_events, self._settle_s = speed, active, max_events, settle_s
        self._entry = random.Random(0)
        self._calls = asyncio.Semaphore(24)
        self._followers: set[asyncio.Task[None]] = set()
        self._started = self._reported = 0
        self._rated_at: dict[tuple[str, str], float] = {}
        self.log = ReplayLog()

    async def run(self, sessions: Sequence[Session]) -> None:
        """Play until the sessions or the events run out; returns when every probe has its answer."""
        queue = iter(sessions)

        async def play_next() -> None:
            # Users enter spread over one gap, so that they do not march in step; each successor waits a whole one.
            await asyncio.sleep(self._entry.uniform(0.0, GAP_CAP_S) / self._speed)
            for session in queue:
                if not await self._play(session):
                    return
                await asyncio.sleep(GAP_CAP_S / self._speed)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._active):
                group.create_task(play_next())
        if self._followers:
            await asyncio.gather(*self._followers)

    async def _play(self, session: Session) -> bool:
        for block in session.blocks:
            await asyncio.sleep(block.gap_s / self._speed)
            if self._started >= self._max_events:
                return False
            self._started += len(block.ratings)
            await self._play_block(block)
        return True

    async def _play_block(self, block: Block) -> None:
        answers = await asyncio.gather(*(self._score(rating) for rating in block.ratings))
        await asyncio.gather(*(self._report(r, a) for r, a in zip(block.ratings, answers, strict=True) if a is not None))
        for rating in block.ratings:
            self._candidates.rated(rating)
            self._counters.add(rating.user_id, rating.item_id, float(rating.stars >= LIKE_STARS))
            self._rated_at[(rating.user_id, rating.item_id)] = time.monotonic()

    async def _score(self, rating: Rating) -> Outcome | None:
        candidates = self._candidates.draw(rating)
        means = self._counters.like_score(rating.user_id, rating.item_id)
        popularity_ndcg = ndcg_of_target(self._counters.popularity(candidates), candidates.index(rating.item_id))
        async with self._calls:
            response = await self._client.recommend(
                rating.user_id, candidates, limit=len(candidates), idempotency_key=f"demo/{rating.user_id}/{rating.item_id}"
            )
        if response is None:
            return None
        outcome = self._outcome(rating, response, means, popularity_ndcg)
        self.log.outcomes.append(outcome)
        if len(self.log.outcomes) % OPEN_EVERY == 0:
            await self._ask_openly(rating.user_id)
        return outcome

    def _outcome(self, rating: Rating, response: Recommendation, means: float, popularity_ndcg: float) -> Outcome:
        if response.degraded_reason:
            self.log.degraded[response.degraded_reason] = self.log.degraded.get(response.degraded_reason, 0) + 1
        tasks = list(response.task_names)
        ndcg: float | None = None
        like: float | None = None
        if tasks and not response.degraded_reason:
            interact_at, like_at = tasks.index("interact"), tasks.index("like")
            target = [item.item_id for item in response.items].index(rating.item_id)
            ndcg = ndcg_of_target(np.array([item.task_scores[interact_at] for item in response.items]), target)
            like = response.items[target].task_scores[like_at]
            self.log.last_version = response.model_version
        return Outcome(
            request_id=response.request_id,
            user_id=rating.user_id,
            item_id=rating.item_id,
            stars=rating.stars,
            at_s=time.monotonic(),
            model_version=response.model_version,
            live_like=like,
            live_ndcg=ndcg,
            means=means,
            popularity_ndcg=popularity_ndcg,
        )

    async def _report(self, rating: Rating, outcome: Outcome) -> None:
        feedback = Feedback(
            feedback_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"demo/{rating.user_id}/{rating.item_id}")),
            request_id=outcome.request_id,
            user_id=rating.user_id,
            item_id=rating.item_id,
            kind="rating",
            value=rating.stars,
            original_time_ms=rating.time_s * 1000,
        )
        number = self._reported
        self._reported += 1
        before = await self._row_before(rating.user_id) if number % PROBE_EVERY == 0 else None
        send = self._client.submit_feedback if number % 2 == 0 else self._client.produce_feedback
        async with self._calls:
            accepted_at_ms = await send(feedback)
        if accepted_at_ms is None:
            return
        self.log.acknowledged[feedback.feedback_id] = accepted_at_ms
        if before is not None:
            follower = asyncio.create_task(self._probe.follow(rating.user_id, before, accepted_at_ms))
            self._followers.add(follower)
            follower.add_done_callback(self._followers.discard)

    async def _row_before(self, user_id: str) -> RowState | None:
        try:
            return await self._probe.state(user_id)
        except InferenceServerException:
            return None  # the replica is down just now: another event will be probed

    async def _ask_openly(self, user_id: str) -> None:
        async with self._calls:
            response = await self._client.recommend(user_id, [], limit=OPEN_LIMIT, idempotency_key=f"demo/open/{uuid.uuid4()}")
        if response is None:
            return
        self.log.open_answers += 1
        self.log.open_items += len(response.items)
        long_ago = time.monotonic() - self._settle_s
        for item in response.items:
            self.log.open_seen_items += self._rated_at.get((user_id, item.item_id), float("inf")) < long_ago
            for reason in item.reasons:
                channel = reason.split(":", 1)[0]
                self.log.open_reasons[channel] = self.log.open_reasons.get(channel, 0) + 1
