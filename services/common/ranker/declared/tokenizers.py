"""From a text to its tokens: by words, or by characters. Pure; needs no model file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

Tokenizer = Literal["words", "characters"]

# Scripts that put no blanks between words: each sign is a token.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def tokenizer_of(kind: Tokenizer, most: int) -> Callable[[str], Sequence[str]]:
    """Return the function from a text to its first `most` tokens. Case, width and composition of letters make no difference (NFKC)."""

    def tokens(text: str) -> list[str]:
        folded = unicodedata.normalize("NFKC", text).casefold()
        if kind == "characters":
            return [sign for sign in folded if not sign.isspace()][:most]
        return [match.group() for _, match in zip(range(most), _TOKEN.finditer(folded), strict=False)]

    return tokens
