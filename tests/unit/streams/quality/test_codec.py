from types import SimpleNamespace

import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage, TokenUsage
from tunemesh.events.v1.exposure_pb2 import Exposure
from tunemesh.events.v1.feedback_pb2 import Feedback
from tunemesh.events.v1.generation_pb2 import Generation

from services.common.events.envelope import MalformedRecord
from streams.quality.codec import Taker
from streams.quality.core import GENERATE, RECOMMEND
from tests.unit.streams.joiner.bench import SPEC

NOW_MS = 1_700_000_000_000
SHOWN = {
    "request_id": "r", "user_id": "u", "exposed_at_ms": NOW_MS, "item_ids": ["a"], "scores": [0.5], "model_version": "3.14",
    "variant": "blue", "degraded_reason": "x",
}  # fmt: skip
SAID = {
    "request_id": "g", "user_id": "u", "task": "answer", "messages": [ChatMessage(role="user", content="?")], "finish_reason": "stop",
    "started_at_ms": NOW_MS - 30, "first_token_at_ms": NOW_MS - 20, "finished_at_ms": NOW_MS, "model_version": "base",
    "usage": TokenUsage(prompt_tokens=9, completion_tokens=3),
}  # fmt: skip
RATED = {
    "feedback_id": "f", "request_id": "r", "user_id": "u", "item_id": "a", "kind": "rating", "value": 5, "accepted_at_ms": NOW_MS,
}  # fmt: skip


class Heard:
    """A Quality that keeps what it was told."""

    def __init__(self) -> None:
        self.told = []

    def __getattr__(self, name):
        return lambda *args: self.told.append((name, *args))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def taker(heard) -> Taker:
    return Taker(heard, SPEC, now_ms=lambda: NOW_MS)


def record(topic: str, message) -> SimpleNamespace:
    return SimpleNamespace(topic=topic, value=message.SerializeToString(), headers=[], partition=0, offset=0)


def test_an_exposure_counts_for_its_epoch(taker, heard) -> None:
    taker.take(record("exposures.v1", Exposure(**SHOWN)))
    [(told, shown)] = heard.told
    assert (told, shown.request_id, shown.variant, shown.model_version, shown.is_degraded) == ("recommended", "r", "blue", "3", True)
    assert (list(shown.scores), shown.items_NF) == ([0.5], None)


def test_an_answer_counts_with_its_times_and_tokens(taker, heard) -> None:
    taker.take(record("generations.v1", Generation(**SAID)))
    [(told, said)] = heard.told
    assert (told, said.ttft_ms, said.generating_ms, said.prompt_tokens, said.completion_tokens) == ("generated", 10.0, 20.0, 9, 3)


def test_of_what_is_recalled_only_the_request_is_noted(taker, heard) -> None:
    taker.take(record("exposures.v1", Exposure(**SHOWN)), is_recalled=True)
    taker.take(record("generations.v1", Generation(**SAID)), is_recalled=True)
    taker.take(record("feedback.v1", Feedback(**RATED)), is_recalled=True)
    assert heard.told == [("remember", "r", RECOMMEND, "blue", "3"), ("remember", "g", GENERATE, "", "base")]


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("exposures.v1", Exposure(**SHOWN | {"user_id": ""})),
        ("generations.v1", Generation(**SAID | {"task": ""})),
        ("feedback.v1", Feedback(**RATED | {"value": float("inf")})),
        ("feedback.v1", Feedback(**RATED | {"request_id": ""})),
        ("feedback.v1", Feedback(**RATED | {"kind": "score", "item_id": "", "value": 5.0})),
    ],
)
def test_what_joiner_or_curator_set_aside_is_not_counted(taker, heard, topic, message) -> None:
    """These were counted once: a score of 5 where 0 to 1 is allowed made the mean score of a variant."""
    with pytest.raises(MalformedRecord):
        taker.take(record(topic, message))
    assert heard.told == []
