"""Control tokens of a chat template inside what people write. Serving and training break them up alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def harmless(text: str, control_tokens: Sequence[str]) -> str:
    """Return the text with a space inside each control token: it can neither end its turn nor open another.

    Args:
        text: of a message or an answer.
        control_tokens: all special tokens of the tokenizer.
    """
    for token in control_tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
