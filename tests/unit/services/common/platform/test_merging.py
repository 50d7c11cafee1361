"""Requests that wait at the same moment go as one call; each keeps its answer, its error, its deadline and its way out."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from services.common.platform.merging import Merger
from tests.limits import seconds

CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("CALLER", default="nobody")


class Refused(Exception):
    """A request's own error."""


@dataclass
class Sender:
    """Answers "x" with "X". Keeps what it was sent; waits as long as it is held; an answer may be an error."""

    held: bool = False
    errors: dict[str, Exception] = field(default_factory=dict)
    fails: BaseException | None = None
    calls: list[list[str]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    num_cancelled: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, batch: Sequence[str], timeout_s: float) -> list[str | Exception]:
        self.calls.append(list(batch))
        self.timeouts.append(timeout_s)
        self.callers.append(CALLER.get())
        try:
            if self.held:
                await self.release.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails
        return [self.errors.get(asked, asked.upper()) for asked in batch]


def merger(sender: Sender, **bounds: float) -> Merger[str, str]:
    return Merger(sender, **{"max_batch": 8, "max_size": 100, "max_running": 2, "patience_s": 3_600.0, **bounds})


def asking(merge: Merger[str, str], *requests: str, **options: float) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(merge.ask(each, **options)) for each in requests]


async def turns(number: int = 5) -> None:
    """Let the loop run what is ready."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(seconds(20)):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_a_request_goes_at_once_and_alone_when_nothing_is_under_way() -> None:
    sender = Sender()
    merge = merger(sender)
    assert await merge.ask("a") == "A"
    assert await merge.ask("b") == "B"
    assert sender.calls == [["a"], ["b"]]


async def test_those_of_one_turn_go_together_in_the_order_in_which_they_came() -> None:
    sender = Sender()
    assert await asyncio.gather(*asking(merger(sender), "a", "b", "c")) == ["A", "B", "C"]
    assert sender.calls == [["a", "b", "c"]]


async def test_while_calls_are_under_way_what_comes_waits_for_company() -> None:
    sender = Sender(held=True)
    merge = merger(sender)
    tasks = []
    for each in ("a", "b", "c", "d"):
        tasks += asking(merge, each)
        await turns()
    assert sender.calls == [["a"], ["b"]]
    sender.release.set()
    assert await asyncio.gather(*tasks) == ["A", "B", "C", "D"]
    assert sender.calls == [["a"], ["b"], ["c", "d"]]


async def test_calls_that_hang_hold_up_the_next_one_only_as_long_as_patience_lasts() -> None:
    sender = Sender(held=True)
    merge = merger(sender, patience_s=0.01)
    tasks = asking(merge, "a")
    await turns()
    tasks += asking(merge, "b")
    await turns()
    for number in range(3):
        tasks += asking(merge, f"c{number}", f"d{number}")
        await until(lambda number=number: len(sender.calls) == 3 + number)
    assert sender.calls[2:] == [["c0", "d0"], ["c1", "d1"], ["c2", "d2"]]
    sender.release.set()
    assert await asyncio.gather(*tasks) == ["A", "B", "C0", "D0", "C1", "D1", "C2", "D2"]


async def test_a_call_holds_ten_times_the_bound_in_ten_calls() -> None:
    sender = Sender()
    names = [f"r{number}" for number in range(80)]
    assert await asyncio.gather(*asking(merger(sender), *names)) == [name.upper() for name in names]
    assert [len(call) for call in sender.calls] == [8] * 10
    assert [name for call in sender.calls for name in call] == names


async def test_sizes_bound_a_call_and_what_is_larger_than_the_bound_goes_alone() -> None:
    sender = Sender()
    merge = merger(sender, max_size=10)
    tasks = [
        asyncio.create_task(merge.ask(name, size=size)) for name, size in (("a", 6), ("b", 4), ("c", 1), ("d", 100), ("e", 10), ("f", 1))
    ]
    await asyncio.gather(*tasks)
    assert sender.calls == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]


async def test_one_that_fails_fails_alone() -> None:
    sender = Sender(errors={"b": Refused("b is bad")})
    answers = await asyncio.gather(*asking(merger(sender), "a", "b", "c"), return_exceptions=True)
    assert [str(each) for each in answers] == ["A", "b is bad", "C"] and isinstance(answers[1], Refused)


async def test_a_call_that_fails_fails_for_all_of_its_requests_and_the_next_is_sent() -> None:
    sender = Sender(fails=Refused("nobody is there"))
    merge = merger(sender)
    answers = await asyncio.gather(*asking(merge, "a", "b"), return_exceptions=True)
    assert [type(each) for each in answers] == [Refused, Refused]
    sender.fails = None
    assert await merge.ask("c") == "C"


async def test_another_number_of_answers_than_requests_is_an_error_for_all() -> None:
    async def forgetful(batch: Sequence[str], timeout_s: float) -> list[str]:
        return list(batch[1:])

    answers = await asyncio.gather(*asking(merger(forgetful), "a", "b"), return_exceptions=True)
    assert [str(each) for each in answers] == ["2 requests were sent as one call, and 1 answers came"] * 2


async def test_who_gives_up_leaves_the_others_and_the_last_ends_the_call() -> None:
    sender = Sender(held=True)
    merge = merger(sender)
    first, second, third = asking(merge, "a", "b", "c")
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled() and sender.num_cancelled == 0
    second.cancel()
    third.cancel()
    await turns()
    assert sender.num_cancelled == 1
    sender.held = False
    assert await merge.ask("d") == "D"


async def test_who_gives_up_before_the_call_is_not_sent() -> None:
    sender = Sender(held=True)
    merge = merger(sender)
    running = asking(merge, "a")
    await turns()
    running += asking(merge, "b")
    await turns()
    left, stays = asking(merge, "left", "stays")
    await turns()
    left.cancel()
    sender.release.set()
    assert await asyncio.gather(stays, *running) == ["STAYS", "A", "B"]
    assert sender.calls == [["a"], ["b"], ["stays"]]


async def test_each_has_its_own_deadline_and_the_call_that_of_the_last() -> None:
    sender = Sender(held=True)
    merge = merger(sender)
    short, long = asking(merge, "short", timeout_s=0.01) + asking(merge, "long", timeout_s=seconds(500))
    with pytest.raises(TimeoutError):
        await short
    assert sender.calls == [["short", "long"]] and seconds(400) < sender.timeouts[0] <= seconds(500)
    assert sender.num_cancelled == 0
    sender.release.set()
    assert await long == "LONG"
    assert await merge.ask("forever") == "FOREVER" and sender.timeouts[-1] == math.inf


async def test_a_call_whose_requests_are_all_late_is_ended() -> None:
    sender = Sender(held=True)
    answers = await asyncio.gather(*asking(merger(sender), "a", "b", timeout_s=0.01), return_exceptions=True)
    assert [type(each) for each in answers] == [TimeoutError, TimeoutError]
    await until(lambda: sender.num_cancelled == 1)


async def test_a_sender_that_is_closed_ends_its_callers_as_a_call_of_their_own_would() -> None:
    sender = Sender(fails=asyncio.CancelledError())
    answers = await asyncio.gather(*asking(merger(sender), "a", "b"), return_exceptions=True)
    assert [type(each) for each in answers] == [asyncio.CancelledError, asyncio.CancelledError]


async def test_no_callers_context_is_there_when_it_is_sent() -> None:
    sender = Sender()
    CALLER.set("somebody")
    await asyncio.gather(*asking(merger(sender), "a", "b"))
    assert sender.callers == ["nobody"]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_each_gets_its_own(seed: int) -> None:
    """Random arrivals, errors, deadlines and cancellations, over calls that end in another order than they began."""
    rng = random.Random(seed)
    sent: list[str] = []
    under_way = 0

    async def send(batch: Sequence[str], timeout_s: float) -> list[str | Exception]:
        nonlocal under_way
        assert 1 <= len(batch) <= 5 and timeout_s > 0
        sent.extend(batch)
        under_way += 1
        try:
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                raise Refused("all")
            return [Refused(each) if each.endswith("7") else each.upper() for each in batch]
        finally:
            under_way -= 1

    merge: Merger[str, str] = Merger(send, max_batch=5, max_size=12, max_running=2, patience_s=0.0005)

    async def caller(name: str) -> str:
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        try:
            return await merge.ask(name, size=rng.randrange(1, 6), timeout_s=0.0 if rng.random() < 0.05 else seconds(60))
        except (Refused, TimeoutError) as error:
            return f"{type(error).__name__} {error}"

    names = [f"r{number}" for number in range(200)]
    tasks = [asyncio.create_task(caller(name)) for name in names]
    for task in rng.sample(tasks, 30):
        asyncio.get_running_loop().call_soon(task.cancel)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: under_way == 0)
    assert len(sent) == len(set(sent)), "a request was sent twice"
    for name, answer in zip(names, answers, strict=True):
        own = (name.upper(), f"Refused {name}", "Refused all", "TimeoutError no answer came in time")
        assert isinstance(answer, asyncio.CancelledError) or answer in own, name
    assert sum(answer == name.upper() for name, answer in zip(names, answers, strict=True)) > 80
