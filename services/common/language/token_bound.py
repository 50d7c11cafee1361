"""How many tokens a text has at most, for who has no tokenizer at hand. Pure."""

from __future__ import annotations

TOKENS_PER_TURN = 8
"""What a chat format writes around a turn: ChatML 5 or 6, Llama 3 4."""

TOKENS_PER_PROMPT = 48
"""What it writes once: the beginning of the answer, and a system turn of its own where there is none (SmolLM2 23, Qwen2.5 20)."""


def most_tokens(text: str) -> int:
    """Return the UTF-8 bytes of a text.

    A token of a tokenizer that knows every text stands for at least one byte: those by bytes (GPT-2, Llama 3, Qwen, SmolLM2) take up to
    three for a Chinese character, those by characters with bytes as their last resort (SentencePiece) no more. English text has about 4.3
    bytes a token, so that who can count counts.
    """
    return len(text.encode(errors="surrogatepass"))
