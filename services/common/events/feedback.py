"""Feedback: what a user did about a recommended item or about an answer, and when it can be used. Pure, so cores may use it.

`services.common.events.wire.feedback` reads and writes it. Which kinds there are about items is the feature spec's business.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

from services.common.events.feedback_kinds import fault_of, is_about_answer
from services.common.events.limits import ErrorOf, check_id, check_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One act of one user.

    Attributes:
        feedback_id: the sender's, one per act; a repeat, of the same user about the same request, is the same act.
        request_id: of the response that the act is about.
        user_id: who did it.
        item_id: what it is about; empty when it is about an answer.
        kind: e.g. "rating", "click"; about an answer one of `feedback_kinds.ANSWER_KINDS`.
        value: what the kind makes of it: stars, seconds, 1 for a click. NaN: none was given (a null), which is the kind's business.
        accepted_at_ms: Unix milliseconds; 0 until it is accepted.
        original_time_ms: Unix milliseconds of the act in replayed data; 0 for live data.
        text: of a comment or a demonstration.
        traceparent: W3C trace context of its record; empty when there is none.
    """

    feedback_id: str
    request_id: str
    user_id: str
    item_id: str
    kind: str
    value: float
    accepted_at_ms: int = 0
    original_time_ms: int = 0
    text: str = ""
    traceparent: str = ""

    @property
    def is_about_answer(self) -> bool:
        """Whether it is about an answer of the language model, and not about an item."""
        return is_about_answer(self.kind, self.item_id)

    @property
    def act_id(self) -> str:
        """32 hex digits; equal for repeats of one act alone: senders may number their acts from 1 for each user or request."""
        named = json.dumps([self.user_id, self.request_id, self.feedback_id])
        return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


def check(feedback: Feedback, error: ErrorOf, *, where: str = "") -> None:
    """Raise `error`, naming the field after `where`, unless the ids are ids and the value is no infinity: what every reader may rely on."""
    check_id(f"{where}feedback_id", feedback.feedback_id, error)
    check_id(f"{where}request_id", feedback.request_id, error)
    check_id(f"{where}user_id", feedback.user_id, error)
    if not feedback.is_about_answer:
        check_id(f"{where}item_id", feedback.item_id, error)
    if math.isinf(feedback.value):
        raise error(f"{where}value: {feedback.value} is not finite")
    check_unit(f"{where}original_time_ms", feedback.original_time_ms, error)


def check_answer(feedback: Feedback, error: ErrorOf, *, where: str = "") -> None:
    """Raise `error`, naming the field after `where`, unless feedback about an answer has what its kind asks for."""
    fault = fault_of(feedback.kind, feedback.value, feedback.text)
    if fault is not None:
        raise error(f"{where}{fault[0]}: {fault[1]}")
