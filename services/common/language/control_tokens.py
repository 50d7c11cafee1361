"""Control tokens of a chat template inside what people write. Serving and training break them up alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def control_tokens_of(tokenizer: Any) -> tuple[str, ...]:
    """Return every token that the tokenizer of transformers reads as one wherever it stands in a text, longest first.

    `all_special_tokens` alone has those with a part of their own (end of text, padding); the markers of roles and tools of many models
    are only among the added ones.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in tokenizer.all_special_tokens} | {token.content for token in added if token.special}
    return tuple(sorted((token for token in found if token), key=lambda token: (-len(token), token)))


def harmless(text: str, control_tokens: Sequence[str]) -> str:
    """Return the text with a space inside each control token: it can neither end its turn nor open another.

    Args:
        text: of a message or an answer.
        control_tokens: those of `control_tokens_of`.
    """
    for token in control_tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
