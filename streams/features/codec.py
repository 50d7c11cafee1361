"""From a record of feedback.v1 to the act that changes features. No I/O, no clock."""

from __future__ import annotations

from typing import Any

from services.common.events.wire.feedback import read_feedback
from services.common.ranker.states import Interaction
from streams.features.core import Act


def read_act(message: Any, now_ms: int) -> Act | None:
    """Return the act in a message of feedback.v1; None when it is about an answer, which has no item.

    Args:
        message: of Faust's; its offset orders the act.
        now_ms: wall clock, Unix milliseconds.
    Raises:
        MalformedRecord: it does not parse, or breaks the contract. The joiner sets it aside.
    """
    feedback = read_feedback(message.value, tuple(message.headers or ()), now_ms)
    if feedback.is_about_answer:
        return None
    time_ms = feedback.original_time_ms or feedback.accepted_at_ms
    return Act(message.offset, feedback.act_id, Interaction(feedback.user_id, feedback.item_id, feedback.kind, feedback.value, time_ms))
