"""What is acceptable feedback, and what a repeat gets. Free of I/O, clock and randomness: they are passed in.

Whether the request, the item or the kind exists is the joiner's business: it is not known here, and acceptance does not wait for it.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.common.events import feedback as rules
from services.common.events.feedback import Feedback
from services.common.events.feedback_kinds import ANSWER_KINDS
from services.common.events.limits import MAX_KIND_BYTES, check_text
from services.common.platform.errors import InvalidInput, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The collector's word that the broker has it. `accepted_at_ms`: when the first acknowledgement of this id came."""

    feedback_id: str
    accepted_at_ms: int
    duplicate: bool


class FeedbackLog(Protocol):
    """Where accepted feedback goes."""

    async def write(self, feedback: Sequence[Feedback], *, timeout_s: float | None) -> None:
        """Return once all of it is acknowledged.

        Raises:
            Unavailable: not acknowledged in time; some of it may be written all the same.
            Overloaded: too much waits already.
        """
        ...


def check(feedback: Sequence[Feedback], *, max_batch: int) -> None:
    """Raise InvalidInput, naming the field, unless every item can be accepted."""
    if not 1 <= len(feedback) <= max_batch:
        raise InvalidInput(f"feedback: {len(feedback)} items; one call takes 1 to {max_batch}")
    for index, item in enumerate(feedback):
        _check_item(item, f"feedback[{index}].")


def _check_item(item: Feedback, where: str) -> None:
    rules.check(item, InvalidInput, where=where)
    if math.isnan(item.value):
        raise InvalidInput(f"{where}value: nan is not finite")
    check_text(f"{where}kind", item.kind, MAX_KIND_BYTES, InvalidInput)
    if item.kind in ANSWER_KINDS:
        if item.item_id:
            raise InvalidInput(f"{where}item_id: it must be empty; a {item.kind} is about an answer")
        rules.check_answer(item, InvalidInput, where=where)
    elif item.text:
        with_text = " or ".join(f"a {kind.name}" for kind in ANSWER_KINDS.values() if kind.has_text)
        raise InvalidInput(f"{where}text: only {with_text} has one")
    if item.accepted_at_ms != 0:
        raise InvalidInput(f"{where}accepted_at_ms: it must be 0; the collector sets it")
    if item.original_time_ms < 0:
        raise InvalidInput(f"{where}original_time_ms: {item.original_time_ms} is negative; 0 means live data")


class AcceptedIds:
    """The acts (`Feedback.act_id`) that the broker acknowledged lately, with the time of the acknowledgement. Bounded in number and age."""

    def __init__(self, *, max_ids: int, ttl_ms: int) -> None:
        """Remember at most `max_ids`, each for `ttl_ms`."""
        self._max_ids = max_ids
        self._ttl_ms = ttl_ms
        self._accepted_at_ms: OrderedDict[str, int] = OrderedDict()

    def get(self, act_id: str, now_ms: int) -> int | None:
        """Return when the act was accepted, or None when it is not remembered."""
        accepted_at_ms = self._accepted_at_ms.get(act_id)
        return None if accepted_at_ms is None or accepted_at_ms + self._ttl_ms < now_ms else accepted_at_ms

    def add(self, act_id: str, accepted_at_ms: int) -> None:
        """Remember an act; forget the oldest beyond the bound."""
        self._accepted_at_ms[act_id] = accepted_at_ms
        self._accepted_at_ms.move_to_end(act_id)
        while len(self._accepted_at_ms) > self._max_ids:
            self._accepted_at_ms.popitem(last=False)


class Collector:
    """Answers SubmitFeedback."""

    def __init__(self, log: FeedbackLog, accepted: AcceptedIds, *, max_batch: int, wall_ms: Callable[[], int]) -> None:
        """`wall_ms` is the clock that stamps what is accepted."""
        self._log = log
        self._accepted = accepted
        self._max_batch = max_batch
        self._wall_ms = wall_ms
        self._running: dict[str, asyncio.Future[int]] = {}

    async def submit(self, feedback: Sequence[Feedback], *, remaining_s: float | None) -> list[Receipt]:
        """Write what is new, wait for the acknowledgement, and return one receipt an item, in order.

        Args:
            feedback: 1 to `max_batch` items.
            remaining_s: seconds until the caller's deadline; None when it set none.
        Raises:
            InvalidInput: nothing was written; the message names the field. Or the broker will never take some of it, and the message
                says that the rest is written.
            Unavailable: not acknowledged in time. Retry with the same feedback_ids.
            Overloaded: too much waits already. Retry later with the same feedback_ids.
        """
        check(feedback, max_batch=self._max_batch)
        now_ms = self._wall_ms()
        new: dict[str, Feedback] = {}
        outcomes: list[int | asyncio.Future[int]] = []
        for item in feedback:
            act_id = item.act_id
            known = self._accepted.get(act_id, now_ms)
            outcome: int | asyncio.Future[int] | None = known if known is not None else self._running.get(act_id)
            if outcome is None:
                outcome = self._running[act_id] = asyncio.get_running_loop().create_future()
                new[act_id] = replace(item, accepted_at_ms=now_ms)
            outcomes.append(outcome)
        if new:
            await self._write(new, remaining_s)
        return [await self._receipt(item, outcome, new) for item, outcome in zip(feedback, outcomes, strict=True)]

    async def _write(self, new: dict[str, Feedback], remaining_s: float | None) -> None:
        try:
            await self._log.write(list(new.values()), timeout_s=remaining_s)
        except BaseException as error:
            # Whoever waits for the same act was not cancelled itself: it is told to try again.
            gone = Unavailable("the first call with this feedback_id was cancelled; retry with the same id")
            for act_id in new:
                waiter = self._running.pop(act_id)
                waiter.set_exception(error if isinstance(error, Exception) else gone)
                waiter.exception()
            raise
        acknowledged_at_ms = self._wall_ms()
        for act_id in new:
            self._accepted.add(act_id, acknowledged_at_ms)
            self._running.pop(act_id).set_result(acknowledged_at_ms)

    async def _receipt(self, item: Feedback, outcome: int | asyncio.Future[int], new: dict[str, Feedback]) -> Receipt:
        accepted_at_ms = outcome if isinstance(outcome, int) else await asyncio.shield(outcome)
        # Of an act that one call names twice, the first is the act and the others are repeats.
        return Receipt(feedback_id=item.feedback_id, accepted_at_ms=accepted_at_ms, duplicate=new.pop(item.act_id, None) is None)
