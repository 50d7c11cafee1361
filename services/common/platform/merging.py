"""Merging of requests across callers: those that wait at the same moment are sent as one call, and each gets an answer of its own.

A call has a price of its own, whatever it carries. While nothing is under way a request goes at once and alone, so an idle caller waits for
nothing; while calls are under way, what comes meanwhile goes together. Nobody pays for a neighbour: a request has its own deadline, its own
error, and may be given up without the others noticing; a call that hangs delays the next one by `patience_s` at most.
Knows nothing of what is sent, nor how.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

AskedT = TypeVar("AskedT")
AnswerT = TypeVar("AnswerT")


class _Waiting(Generic[AskedT, AnswerT]):
    """One request until its caller has what it wanted."""

    __slots__ = ("asked", "deadline", "deadline_s", "future", "size")

    def __init__(self, asked: AskedT, size: int, deadline_s: float, future: asyncio.Future[AnswerT]) -> None:
        self.asked, self.size, self.deadline_s, self.future = asked, size, deadline_s, future
        self.deadline: asyncio.TimerHandle | None = None


class Merger(Generic[AskedT, AnswerT]):
    """Belongs to one event loop, the one that its first caller runs on."""

    def __init__(
        self,
        send: Callable[[Sequence[AskedT], float], Awaitable[Sequence[AnswerT | Exception]]],
        *,
        max_batch: int,
        max_size: int,
        max_running: int = 2,
        patience_s: float = 0.025,
    ) -> None:
        """Make a merger.

        Args:
            send: sends requests, at least one and in the order in which they came, as one call, and returns for each its answer or its
                error, in that order. Its second argument is the seconds until the last of their deadlines (infinite: one of them has none).
                What it raises is the error of all. It runs in a context of its own: the spans and variables of the callers are not there.
            max_batch: most requests in a call.
            max_size: most that the sizes of a call's requests add up to; a larger one goes alone.
            max_running: while so many calls are under way, requests wait for company.
            patience_s: but no longer than this.
        """
        self._send = send
        self._max_batch, self._max_size = max_batch, max_size
        self._max_running, self._patience_s = max_running, patience_s
        self._waiting: deque[_Waiting[AskedT, AnswerT]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._is_due = False
        self._patience: asyncio.TimerHandle | None = None

    async def ask(self, asked: AskedT, *, size: int = 1, timeout_s: float = math.inf) -> AnswerT:
        """Return the answer to a request.

        Args:
            asked: what `send` gets.
            size: counts towards `max_size`.
            timeout_s: how long this caller waits, merging included.
        Raises:
            TimeoutError: there was none in time.
            Exception: what `send` had for this request, or raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        waiting = _Waiting(asked, size, loop.time() + timeout_s, future)
        if timeout_s < math.inf:
            waiting.deadline = loop.call_later(max(timeout_s, 0.0), _expire, waiting.future)
        self._waiting.append(waiting)
        if not self._is_due:
            # At the end of this turn of the loop: who else becomes ready in it comes along.
            self._is_due = True
            loop.call_soon(self._start, False)
        try:
            return await future
        finally:
            if waiting.deadline is not None:
                waiting.deadline.cancel()

    def _start(self, is_forced: bool) -> None:
        """Send what waits, as far as calls may be under way; `is_forced`: patience is over, so the first call goes in any case."""
        self._is_due = False
        if is_forced:
            self._patience = None
        while is_forced or len(self._running) < self._max_running:
            batch = self._take()
            if not batch:
                break
            is_forced = False
            task = asyncio.get_running_loop().create_task(self._call(batch), context=Context())
            self._running.add(task)
            for each in batch:
                each.future.add_done_callback(_Leaving(task, batch))
        self._be_patient()

    def _be_patient(self) -> None:
        if self._waiting and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(self._patience_s, self._start, True)
        elif not self._waiting and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _take(self) -> list[_Waiting[AskedT, AnswerT]]:
        """Return the next call's requests; those that were given up meanwhile are left out."""
        batch: list[_Waiting[AskedT, AnswerT]] = []
        size = 0
        while self._waiting and len(batch) < self._max_batch:
            first = self._waiting[0]
            if batch and size + first.size > self._max_size:
                break
            self._waiting.popleft()
            if not first.future.done():
                batch.append(first)
                size += first.size
        return batch

    async def _call(self, batch: Sequence[_Waiting[AskedT, AnswerT]]) -> None:
        """Send, and give each its own. Whoever is gone by then is not missed."""
        timeout_s = max(each.deadline_s for each in batch) - asyncio.get_running_loop().time()
        task = asyncio.current_task()
        try:
            answers = await self._send([each.asked for each in batch], timeout_s)
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} requests were sent as one call, and {len(answers)} answers came")
            for each, answer in zip(batch, answers, strict=True):
                _settle(each.future, answer)
        except asyncio.CancelledError:
            # Nobody waits any more, or what sends was closed: a call of one's own would end in the same way.
            for each in batch:
                each.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers' to see
            for each in batch:
                _settle(each.future, error)
        finally:
            if task is not None:
                self._running.discard(task)
            self._start(False)


class _Leaving:
    """Ends a call that nobody waits for any more."""

    __slots__ = ("_batch", "_task")

    def __init__(self, task: asyncio.Task[None], batch: Sequence[_Waiting[AskedT, AnswerT]]) -> None:
        self._task, self._batch = task, batch

    def __call__(self, future: asyncio.Future[AnswerT]) -> None:
        is_answered = not future.cancelled() and not isinstance(future.exception(), TimeoutError)
        if not is_answered and all(each.future.done() for each in self._batch):
            self._task.cancel()


def _settle(future: asyncio.Future[AnswerT], answer: AnswerT | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _expire(future: asyncio.Future[AnswerT]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("no answer came in time"))
