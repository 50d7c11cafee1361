import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage, TokenUsage
from tunemesh.events.v1 import generation_pb2

from services.common.events.chat import Message, Usage
from services.common.events.envelope import MalformedRecord
from services.common.events.wire.generation import parse_generation, read_generation

NOW_MS = 1_700_000_000_000
SAID = {
    "request_id": "r1",
    "user_id": "u1",
    "task": "helpdesk",
    "question": "How long?",
    "answer": "Nine days.",
    "finish_reason": "stop",
    "experiment": "e",
    "variant": "default",
    "model_version": "base",
    "prompt_version": "answer@v1",
    "degraded_reason": "retrieval_unavailable",
    "started_at_ms": NOW_MS - 20,
    "first_token_at_ms": NOW_MS - 10,
    "finished_at_ms": NOW_MS,
    "context_given": True,
}


def value(**changes) -> bytes:
    fields = {
        **SAID,
        "messages": [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="How long?")],
        "passage_ids": ["catalog:1"],
        "usage": TokenUsage(prompt_tokens=9, completion_tokens=3),
    }
    return generation_pb2.Generation(**(fields | changes)).SerializeToString()


def test_an_answer_is_read_whole() -> None:
    read = read_generation(value(), [("traceparent", b"00-a-b-01")], NOW_MS)
    assert {name: getattr(read, name) for name in SAID} == SAID
    assert read.messages == (Message("system", "Be brief."), Message("user", "How long?"))
    assert (read.passage_ids, read.usage, read.traceparent) == (("catalog:1",), Usage(prompt_tokens=9, completion_tokens=3), "00-a-b-01")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request_id": ""}, "request_id: it is empty"),
        ({"user_id": "x" * 129}, "user_id: it has 129 bytes"),
        ({"task": ""}, "task: it is empty"),
        ({"messages": []}, "messages: there are none"),
        ({"finished_at_ms": 0}, "finished_at_ms: 0 is not a time"),
        ({"finished_at_ms": NOW_MS + 3_600_000}, "finished_at_ms: it is 3600000 ms in the future"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_malformed_and_parsed_all_the_same(changes, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_generation(value(**changes), None, NOW_MS)
    assert parse_generation(value(**changes), None).answer == "Nine days."
