from types import SimpleNamespace

import pytest
from tunemesh.events.v1 import feedback_pb2

from services.common.events.envelope import MalformedRecord
from services.common.events.feedback import Feedback
from services.common.ranker.states import Interaction
from streams.features.codec import read_act
from streams.features.core import Act

NOW_MS = 1_700_000_000_000
ACT_ID = Feedback(feedback_id="f", request_id="r", user_id="u", item_id="i", kind="rating", value=4.0).act_id


def message(**changes) -> SimpleNamespace:
    fields = {
        "feedback_id": "f", "request_id": "r", "user_id": "u", "item_id": "i", "kind": "rating", "value": 4.0, "accepted_at_ms": NOW_MS - 5,
    }  # fmt: skip
    return SimpleNamespace(value=feedback_pb2.Feedback(**(fields | changes)).SerializeToString(), headers=None, offset=7)


def test_an_act_has_the_time_at_which_it_was_accepted_or_in_replayed_data_done() -> None:
    assert read_act(message(), NOW_MS) == Act(7, ACT_ID, Interaction("u", "i", "rating", 4.0, NOW_MS - 5))
    replayed = read_act(message(original_time_ms=9), NOW_MS)
    assert replayed is not None and replayed.interaction.time_ms == 9


def test_acts_of_other_users_and_requests_with_the_same_feedback_id_are_others() -> None:
    acts = [read_act(message(**changes), NOW_MS) for changes in ({}, {"user_id": "v"}, {"request_id": "s"}, {"value": 1.0})]
    ids = [one.act_id for one in acts if one is not None]
    assert len(set(ids)) == 3 and ids[0] == ids[3], "a repeat with another value is a repeat"


def test_feedback_about_an_answer_is_no_act() -> None:
    assert read_act(message(kind="boolean", item_id="", value=1), NOW_MS) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": ""},
        {"item_id": "x" * 129},
        {"value": float("inf")},
        # Features took these once, although the joiner sets them aside: they would have been counted and never learned from.
        {"request_id": ""},
        {"accepted_at_ms": 0},
        {"accepted_at_ms": NOW_MS + 3_600_000},
    ],
)
def test_what_the_joiner_sets_aside_changes_no_feature(changes) -> None:
    with pytest.raises(MalformedRecord):
        read_act(message(**changes), NOW_MS)
