"""How one waiting question is settled: asked again while that can help, given up with a reason. And what has been answered already.

Free of I/O, clock and randomness: they are passed in. Knows neither gRPC nor Kafka nor what a question says.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from services.common.events import dead_letter_reasons as reasons
from services.common.platform.errors import ServiceError, Unavailable

MessageT = TypeVar("MessageT")


class Refused(ServiceError):
    """The router will never answer this question. Retrying does not help."""


class NotNow(Unavailable):
    """The router did not answer, or broke off. Retrying later helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question that may wait. `body` is the router's business; `expires_at_ms` 0 means that it is always wanted."""

    inference_id: str
    expires_at_ms: int
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The router's whole answer."""

    request_id: str
    text: str
    finish_reason: str
    model_version: str
    prompt_version: str
    degraded_reason: str
    passage_ids: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no answer: one of `services.common.events.dead_letter_reasons`, and a sentence."""

    reason: str
    detail: str


class Router(Protocol):
    """Answers questions."""

    async def answer(self, question: Question, *, timeout_s: float) -> Answer:
        """Return the whole answer.

        Raises:
            Refused, NotNow.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and how long a question is tried; times in seconds. The pause doubles with each attempt."""

    max_attempts: int
    attempt_timeout_s: float
    first_pause_s: float
    max_pause_s: float

    def pause_s(self, attempt: int) -> float:
        """Return the pause after attempt number 1, 2, ..."""
        return min(self.first_pause_s * 2.0 ** (attempt - 1), self.max_pause_s)


async def settle(
    question: Question, router: Router, patience: Patience, *, now_ms: Callable[[], int], sleep: Callable[[float], Awaitable[None]]
) -> Answer | Failure:
    """Ask until there is an answer, or no point in asking: refused, expired, or tried often enough."""
    attempt = 0
    while True:
        left_s = _left_s(question, now_ms())
        if left_s <= 0:
            return Failure(reason=reasons.EXPIRED, detail=f"it expired after {attempt} attempts")
        attempt += 1
        try:
            return await router.answer(question, timeout_s=min(patience.attempt_timeout_s, left_s))
        except Refused as error:
            return Failure(reason=reasons.REFUSED, detail=str(error))
        except NotNow as error:
            if attempt >= patience.max_attempts:
                return Failure(reason=reasons.UNANSWERED, detail=f"{attempt} attempts; the last: {error}")
            # A pause is not slept into the expiry: the sender learns of it when it happens.
            await sleep(max(0.0, min(patience.pause_s(attempt), _left_s(question, now_ms()))))


def _left_s(question: Question, now_ms: int) -> float:
    return (question.expires_at_ms - now_ms) / 1e3 if question.expires_at_ms else float("inf")


class RecentIds:
    """The inference_ids that are being answered, and those that were answered lately. Best effort: in the memory of one process."""

    def __init__(self, *, ttl_ms: int, max_ids: int) -> None:
        """Remember at most `max_ids` answered ones, each for `ttl_ms`."""
        self._ttl_ms = ttl_ms
        self._max_ids = max_ids
        self._running: set[str] = set()
        self._answered_at_ms: OrderedDict[str, int] = OrderedDict()

    def begin(self, inference_id: str, now_ms: int) -> bool:
        """Note that a question is being answered; False when it is already, or was lately."""
        answered_at_ms = self._answered_at_ms.get(inference_id)
        if inference_id in self._running or (answered_at_ms is not None and now_ms < answered_at_ms + self._ttl_ms):
            return False
        self._running.add(inference_id)
        return True

    def end(self, inference_id: str, now_ms: int, *, answered: bool) -> None:
        """Note the end; a question without an answer may come again."""
        self._running.discard(inference_id)
        if not answered:
            return
        self._answered_at_ms[inference_id] = now_ms
        self._answered_at_ms.move_to_end(inference_id)
        while self._answered_at_ms and (
            len(self._answered_at_ms) > self._max_ids or next(iter(self._answered_at_ms.values())) + self._ttl_ms < now_ms
        ):
            self._answered_at_ms.popitem(last=False)


class InOrder(Generic[MessageT]):
    """Work that starts in order and ends in any: gives back what may be acknowledged, which is in order again."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._started: deque[tuple[int, MessageT]] = deque()
        self._done: set[int] = set()
        self._next = 0

    def start(self, message: MessageT) -> int:
        """Note that the work on a message begins; return its number."""
        self._next += 1
        self._started.append((self._next, message))
        return self._next

    def done(self, number: int) -> list[MessageT]:
        """Note an end; return the messages before which nothing is under way any more, oldest first."""
        self._done.add(number)
        released = []
        while self._started and self._started[0][0] in self._done:
            at, message = self._started.popleft()
            self._done.remove(at)
            released.append(message)
        return released
