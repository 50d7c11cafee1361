"""The kinds of feedback about an answer of the language model, as all readers and writers of feedback.v1 must agree on them.

Kinds about recommendations are the feature spec's business; what tells the two apart is that an answer has no item. Imports nothing, so
cores may use it.
"""

from __future__ import annotations

BOOLEAN = "boolean"
SCORE = "score"
COMMENT = "comment"
DEMONSTRATION = "demonstration"

LLM_KINDS = frozenset({BOOLEAN, SCORE, COMMENT, DEMONSTRATION})
TEXT_KINDS = frozenset({COMMENT, DEMONSTRATION})
"""Those that carry a text, of 1 to MAX_TEXT_BYTES bytes."""
MAX_TEXT_BYTES = 16 * 1024


def is_about_answer(kind: str, item_id: str) -> bool:
    """Return whether a feedback is about an answer of the language model."""
    return not item_id and kind in LLM_KINDS


def fault_of(kind: str, value: float, text: str) -> tuple[str, str] | None:
    """Return (field, what is wrong) of a feedback about an answer, or None when it is in order. `value` is finite."""
    if kind in TEXT_KINDS:
        size = len(text.encode())
        if not text.strip() or size > MAX_TEXT_BYTES:
            return "text", f"it has {size} bytes; a {kind} must have 1 to {MAX_TEXT_BYTES}, and not only blanks"
        return None
    if text:
        return "text", f"a {kind} has none"
    if kind == BOOLEAN and value not in (0.0, 1.0):
        return "value", f"{value} is neither 0 nor 1"
    if kind == SCORE and not 0.0 <= value <= 1.0:
        return "value", f"{value} is not within 0 and 1"
    return None
