from types import SimpleNamespace

import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.events.v1 import example_pb2

from services.common.events.chat import Message
from services.tuner.examples import ExampleBook
from services.tuner.kafka_examples import Examples

DEMONSTRATION = example_pb2.LlmExample(
    example_id="1",
    task="helpdesk",
    kind=example_pb2.EXAMPLE_KIND_DEMONSTRATION,
    question="How long?",
    messages=[ChatMessage(role="user", content="How long?")],
    answer="Nine days.",
    created_at_ms=7,
)


def record(example: example_pb2.LlmExample | None, offset: int = 0, timestamp: int = 5) -> SimpleNamespace:
    value = example.SerializeToString() if example is not None else b"\xff"
    return SimpleNamespace(key=b"helpdesk", value=value, headers=[], partition=0, offset=offset, timestamp=timestamp)


def changed(**fields) -> example_pb2.LlmExample:
    example = example_pb2.LlmExample()
    example.CopyFrom(DEMONSTRATION)
    if "messages" in fields:
        del example.messages[:]
        fields.pop("messages")
    for name, value in fields.items():
        setattr(example, name, value)
    return example


def book() -> Examples:
    return Examples(ExampleBook(max_per_task=10, max_tasks=10))


def test_demonstrations_and_judgements_are_told_apart_by_their_kind():
    examples = book()
    examples.begin([record(DEMONSTRATION), record(changed(example_id="2", kind=example_pb2.EXAMPLE_KIND_JUDGED))])
    examples.extend([record(DEMONSTRATION), record(changed(example_id="3", kind=0))])
    assert (examples.tasks(), examples.num_demonstrations("helpdesk"), examples.num_judged("helpdesk")) == (["helpdesk"], 1, 1)
    found = examples.demonstrations("helpdesk")[0]
    assert (found.question, found.messages, found.answer, found.created_at_ms) == (
        "How long?",
        (Message("user", "How long?"),),
        "Nine days.",
        7,
    )


def test_a_demonstration_that_is_written_late_counts_from_then_on():
    examples = book()
    examples.begin([record(DEMONSTRATION, timestamp=9), record(changed(example_id="2", question="Where?"), 1, timestamp=-1)])
    examples.extend([record(changed(example_id="3", question="Who?"), 2, timestamp=1_000)])
    assert examples.counted_ms("helpdesk", most_of_a_user=9) == [7, 9, 1_000]
    assert examples.counted_ms("helpdesk", most_of_a_user=9, since_ms=500) == [1_000], "a tune that began at 500 did not have it"
    examples.extend([record(DEMONSTRATION, 3, timestamp=2_000)])
    assert examples.counted_ms("helpdesk", most_of_a_user=9) == [7, 9, 1_000], "a repeat is none"


@pytest.mark.parametrize(
    "bad", [None, changed(example_id=""), changed(task="../x"), changed(messages=()), changed(answer=" "), changed(answer="x" * 70_000)]
)
def test_an_example_that_cannot_be_used_is_left_out_and_the_next_one_is_not(bad, caplog):
    examples = book()
    examples.begin([record(bad, 41), record(changed(example_id="9"), 42)])
    assert [one.example_id for one in examples.demonstrations("helpdesk")] == ["9"]
    assert "offset 41 is left out" in caplog.text


def test_a_broker_that_lost_its_log_does_not_take_the_examples_along():
    examples = book()
    examples.begin([record(DEMONSTRATION)])
    examples.begin([])
    assert examples.num_demonstrations("helpdesk") == 1
    examples.begin([record(changed(example_id="2"))])
    assert [one.example_id for one in examples.demonstrations("helpdesk")] == ["2"]


def test_who_taught_and_from_passages_or_not_is_kept():
    examples = book()
    examples.begin([record(changed(user_id="ada")), record(changed(example_id="2", question="Where?"), offset=1)])
    first, second = examples.demonstrations("helpdesk")
    assert (first.user_id, first.is_grounded, second.user_id) == ("ada", False, "")
    grounded = changed(example_id="3", question="When?")
    grounded.passage_ids.append("files/a#1")
    examples.extend([record(grounded, offset=2)])
    assert examples.demonstrations("helpdesk")[2].is_grounded
    assert examples.counted_ms("helpdesk", most_of_a_user=9) == [7, 7, 7]
