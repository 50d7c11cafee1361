from dataclasses import dataclass, field

import pytest

from streams.inference.core import Answer, Failure, InOrder, NotNow, Patience, Question, RecentIds, Refused, settle

ANSWER = Answer(
    request_id="r",
    text="In 1995.",
    finish_reason="stop",
    model_version="M",
    prompt_version="answer@v1",
    degraded_reason="",
    passage_ids=(),
    prompt_tokens=1,
    completion_tokens=2,
)
PATIENCE = Patience(max_attempts=4, attempt_timeout_s=10.0, first_pause_s=1.0, max_pause_s=3.0)


@dataclass
class World:
    """A router that fails as often as it is told to; time passes only while somebody sleeps."""

    failures: list[Exception] = field(default_factory=list)
    now_ms: int = 1_000_000
    timeouts_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    async def answer(self, question: Question, *, timeout_s: float) -> Answer:
        self.timeouts_s.append(timeout_s)
        if self.failures:
            raise self.failures.pop(0)
        return ANSWER

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_ms += int(seconds * 1e3)

    async def settle(self, *, expires_in_ms: int | None = None) -> Answer | Failure:
        expires_at_ms = 0 if expires_in_ms is None else self.now_ms + expires_in_ms
        question = Question(inference_id="i", expires_at_ms=expires_at_ms, body=None)
        return await settle(question, self, PATIENCE, now_ms=lambda: self.now_ms, sleep=self.sleep)


async def test_an_answer_is_taken_as_it_comes():
    world = World()
    assert await world.settle() is ANSWER
    assert world.timeouts_s == [10.0] and world.pauses_s == []


async def test_a_router_that_comes_back_is_asked_again_after_pauses_that_double():
    world = World([NotNow("away")] * 3)
    assert await world.settle() is ANSWER
    assert world.pauses_s == [1.0, 2.0, 3.0]


async def test_a_router_that_stays_down_is_given_up_with_its_last_words():
    outcome = await World([NotNow("away")] * 3 + [NotNow("still away")]).settle()
    assert isinstance(outcome, Failure) and outcome.reason == "unanswered" and outcome.detail == "4 attempts; the last: still away"


async def test_a_refusal_is_final():
    world = World([Refused("question: empty")])
    outcome = await world.settle()
    assert outcome == Failure(reason="refused", detail="question: empty") and len(world.timeouts_s) == 1


@pytest.mark.parametrize("expires_in_ms", [0, -5])
async def test_an_expired_question_is_not_asked(expires_in_ms):
    world = World()
    outcome = await world.settle(expires_in_ms=expires_in_ms)
    assert isinstance(outcome, Failure) and outcome.reason == "expired" and world.timeouts_s == []


async def test_neither_an_attempt_nor_a_pause_lasts_longer_than_the_question_is_wanted():
    world = World([NotNow("away")] * 9)
    outcome = await world.settle(expires_in_ms=2_500)
    assert isinstance(outcome, Failure) and outcome.reason == "expired" and outcome.detail == "it expired after 2 attempts"
    assert world.timeouts_s == [2.5, 1.5] and world.pauses_s == [1.0, 1.5]


def test_an_id_is_taken_once_while_it_runs_and_for_a_while_after_its_answer():
    recent = RecentIds(ttl_ms=100, max_ids=10)
    assert recent.begin("a", 0) and not recent.begin("a", 0)
    recent.end("a", 10, answered=True)
    assert not recent.begin("a", 109) and recent.begin("a", 110)


def test_an_id_without_an_answer_may_come_again():
    recent = RecentIds(ttl_ms=100, max_ids=10)
    recent.begin("a", 0)
    recent.end("a", 10, answered=False)
    assert recent.begin("a", 10)


def test_only_so_many_ids_are_remembered_and_the_oldest_goes_first():
    recent = RecentIds(ttl_ms=100, max_ids=2)
    for number, name in enumerate("abc"):
        recent.begin(name, number)
        recent.end(name, number, answered=True)
    assert recent.begin("a", 3) and not recent.begin("b", 3) and not recent.begin("c", 3)


def test_messages_are_released_in_order_however_their_work_ends():
    in_order: InOrder[str] = InOrder()
    first, second, third = (in_order.start(name) for name in "abc")
    assert in_order.done(second) == []
    assert in_order.done(first) == ["a", "b"]
    assert in_order.done(third) == ["c"]
