"""What goes in and what comes out."""

import itertools
import pickle
import time
import uuid

import pytest
from tunemesh.common.v1 import recommendation_pb2

from tunemesh_client import Feedback, Item
from tunemesh_client.ids import new_id
from tunemesh_client.messages import Items


def test_minted_ids_are_uuids_of_version_7_that_name_their_time_and_differ() -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(1_000)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1_000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
        assert before_ms <= parsed.int >> 80 <= after_ms
    assert all(earlier[:13] <= later[:13] for earlier, later in itertools.pairwise(ids))


def test_each_feedback_has_an_id_of_its_own_unless_it_is_given_one() -> None:
    acts = [Feedback(request_id="r", user_id="u", kind="click", item_id="i") for _ in range(2)]
    assert acts[0].feedback_id != acts[1].feedback_id
    assert Feedback(request_id="r", user_id="u", kind="click", item_id="i", feedback_id="mine").to_proto().feedback_id == "mine"


def test_every_field_of_a_feedback_reaches_its_message() -> None:
    given = {"feedback_id": "f", "request_id": "r", "user_id": "u", "item_id": "i", "kind": "k", "value": 2.5, "text": "t"}
    message = Feedback(**given, original_time_ms=7).to_proto(accepted_at_ms=9)
    assert {field.name: value for field, value in message.ListFields()} == {**given, "original_time_ms": 7, "accepted_at_ms": 9}


@pytest.fixture
def items() -> Items:
    return Items(
        [
            recommendation_pb2.RankedItem(item_id=name, score=0.5, task_scores=[0.25, 0.75], reasons=["popular"])
            for name in ("first", "second", "third")
        ]
    )


def test_items_are_a_sequence_like_their_tuple(items) -> None:
    expected = tuple(Item(name, 0.5, (0.25, 0.75), ("popular",)) for name in ("first", "second", "third"))
    assert len(items) == 3 and items[0] == expected[0] and items[-1] == expected[-1] and items[1:] == expected[1:]
    assert list(items) == list(expected) and expected[1] in items
    assert items == expected and expected == items and items != expected[1:] and items != "first"
    assert hash(items) == hash(expected) and repr(items) == repr(expected)
    assert pickle.loads(pickle.dumps(items)) == expected  # noqa: S301 - written on this line
    with pytest.raises(IndexError):
        items[3]
