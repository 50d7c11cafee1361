"""Feedback as a Kafka record."""

import pytest
from tunemesh.events.v1 import feedback_pb2

from services.common.events import feedback
from services.common.events.envelope import headers_for, parse_value
from services.common.events.feedback_kinds import ANSWER_KINDS
from services.common.events.topics import FEEDBACK
from services.common.platform.errors import InvalidInput
from services.feedback_collector import core
from tunemesh_client import Feedback, InvalidRequest, events
from tunemesh_client.events import EVENT_TYPE, TOPIC, check, record_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def act(**fields) -> Feedback:
    return Feedback(**{"request_id": "r", "user_id": "u", "kind": "rating", "item_id": "i", "value": 5.0, "feedback_id": "f", **fields})


def about_answer(kind: str, **fields) -> Feedback:
    return act(**{"kind": kind, "item_id": "", "value": 0.0, **fields})


@pytest.mark.parametrize("traceparent", ["", TRACEPARENT])
def test_a_record_is_what_the_meshs_own_writers_write(traceparent) -> None:
    given = act(user_id="Jürgen", original_time_ms=3)
    record = record_of(given, source="/shop", accepted_at_ms=1_764_000_000_007, traceparent=traceparent)
    expected = headers_for(FEEDBACK.value, "/shop", event_id="f", time_ms=1_764_000_000_007, traceparent=traceparent)
    assert (FEEDBACK.name, FEEDBACK.value) == (TOPIC, EVENT_TYPE)
    assert record.headers == expected
    assert record.key == "Jürgen".encode()
    assert parse_value(record.value, record.headers, feedback_pb2.Feedback) == given.to_proto(accepted_at_ms=1_764_000_000_007)


CASES = [
    act(),
    act(feedback_id=""),
    act(feedback_id="f" * 128),
    act(feedback_id="f" * 129),
    act(request_id=""),
    act(request_id="ü" * 65),
    act(user_id=""),
    act(user_id="ü" * 64),
    act(item_id=""),
    act(item_id="i" * 129),
    act(kind=""),
    act(kind="k" * 64),
    act(kind="k" * 65),
    act(value=float("nan")),
    act(value=float("-inf")),
    act(text="why"),
    act(original_time_ms=-1),
    act(original_time_ms=9),
    *(about_answer("boolean", value=value) for value in (0.0, 1.0, 0.5)),
    *(about_answer("score", value=value) for value in (0.0, 0.5, 1.0, 1.1, -0.1)),
    *(about_answer(kind, text=text) for kind in ("comment", "demonstration") for text in ("good", "", " \n", "x" * 16_384, "x" * 16_385)),
    *(about_answer(kind, item_id="i", text="good") for kind in ("comment", "demonstration")),
    about_answer("boolean", value=1.0, item_id="i"),
    about_answer("boolean", value=1.0, text="good"),
]


@pytest.mark.parametrize("given", CASES, ids=range(len(CASES)))
def test_what_a_producer_refuses_is_what_the_feedback_collector_refuses(given) -> None:
    """Nobody looks at a record before the mesh reads it: what the collector would refuse ends as a dead letter."""
    known = feedback.Feedback(**{field: getattr(given, field) for field in given.__slots__})
    expected = ours = ""
    try:
        core.check([known], max_batch=1)
    except InvalidInput as error:
        expected = str(error).removeprefix("feedback[0].").partition(":")[0]
    try:
        check(given)
    except InvalidRequest as error:
        ours = error.details.partition(":")[0]
        assert not error.retry_helps
    assert ours == expected


def test_the_client_knows_every_kind_of_feedback_about_an_answer() -> None:
    """A kind that it does not know it would take for one about an item, and ask for the item."""
    assert set(events._ANSWER_KINDS) == set(ANSWER_KINDS)
