"""The kinds of feedback that every mesh knows, one row a kind: what all readers and writers of feedback.v1 agree on.

Of a kind about an answer of the language model, the collector and the curator check a feedback by its row, the curator makes an example by
it, the quality stream a metric. To add one, add a row (CONTRIBUTING.md shows it). Kinds about an item say what became of it; what people
did about it (a click, a rating) are the feature spec's kinds. What tells the two apart is that an answer has no item. Imports the standard
library only, so cores may use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

MAX_TEXT_BYTES = 16 * 1024


class ExampleRule(Enum):
    """What example the curator makes of an answer and a feedback about it."""

    DEMONSTRATION = "demonstration"
    """The feedback's text is the answer to learn."""
    JUDGED = "judged"
    """The model's own answer, and the feedback's opinion or text as a judgement of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRule:
    """What the value of a kind must be, and what opinion it states."""

    is_valid: Callable[[float], bool]
    """Of a finite value."""
    otherwise: str
    """What an invalid value is, to follow "0.5 is "."""
    opinion: Callable[[float], float]
    """The value on the scale from 0 (bad) to 1 (good)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKind:
    """One kind of feedback about an answer."""

    name: str
    """Feedback.kind."""
    value: ValueRule | None = None
    """None: the value is not looked at."""
    has_text: bool = False
    """Whether it carries a text, of 1 to MAX_TEXT_BYTES bytes and not only blanks; otherwise it must have none."""
    example: ExampleRule
    metric: str
    """Name in the windows of quality.v1: the mean opinion, or the number of acts of a kind whose value is not looked at."""


_KINDS = (
    AnswerKind(
        name="boolean",
        value=ValueRule(is_valid=lambda value: value in (0.0, 1.0), otherwise="neither 0 nor 1", opinion=lambda value: float(value == 1.0)),
        example=ExampleRule.JUDGED,
        metric="thumbs_up_rate",
    ),
    AnswerKind(
        name="score",
        value=ValueRule(is_valid=lambda value: 0.0 <= value <= 1.0, otherwise="not within 0 and 1", opinion=lambda value: value),
        example=ExampleRule.JUDGED,
        metric="mean_score",
    ),
    AnswerKind(name="comment", has_text=True, example=ExampleRule.JUDGED, metric="feedback.comment"),
    AnswerKind(name="demonstration", has_text=True, example=ExampleRule.DEMONSTRATION, metric="feedback.demonstration"),
)

ANSWER_KINDS = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKind:
    """One kind of feedback about an item that is no act: it teaches no label and counts in no feature. Its value is not looked at."""

    name: str
    """Feedback.kind; no feature spec may have a kind of this name."""
    metric: str
    """Name in the windows of quality.v1: how many there were."""


IMPRESSION = ItemKind(name="impression", metric="impressions")
"""The item came into the user's view. Which items of an exposure may become negatives, if the feature spec says so (`negatives.source`)."""

ITEM_KINDS = {kind.name: kind for kind in (IMPRESSION,)}


def is_about_answer(kind: str, item_id: str) -> bool:
    """Return whether a feedback is about an answer of the language model."""
    return not item_id and kind in ANSWER_KINDS


def opinion_of(kind: str, value: float) -> float | None:
    """Return the opinion from 0 to 1 that a feedback about an answer states, or None when its kind states none.

    Raises:
        KeyError: `kind` is not in ANSWER_KINDS.
    """
    rule = ANSWER_KINDS[kind].value
    return None if rule is None else rule.opinion(value)


def fault_of(kind: str, value: float, text: str) -> tuple[str, str] | None:
    """Return (field, what is wrong) of a feedback about an answer, or None when it is in order. `value` is no infinity; NaN is none.

    Raises:
        KeyError: `kind` is not in ANSWER_KINDS.
    """
    known = ANSWER_KINDS[kind]
    if known.has_text:
        size = len(text.encode())
        if not text.strip() or size > MAX_TEXT_BYTES:
            return "text", f"it has {size} bytes; a {kind} must have 1 to {MAX_TEXT_BYTES}, and not only blanks"
    elif text:
        return "text", f"a {kind} has none"
    if known.value is not None and not known.value.is_valid(value):
        return "value", f"{value} is {known.value.otherwise}"
    return None
