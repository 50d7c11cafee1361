"""The prompt that the router makes by itself while the prompt assembler is unavailable. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from services.common.events.chat import Message, Passage
from services.common.language.token_bound import TOKENS_PER_TURN
from services.router.generation import Prompt
from services.router.question import Question

_PLAIN_SYSTEM = "Answer the question briefly. Use the passages when they help."
# Fits every context length that is worth serving.
PLAIN_PROMPT_TOKENS = 1_000
# What is worth being counted: text beyond it has no room, whatever the language.
_MOST_COUNTED_BYTES = 64 * 1024
_MOST_COUNTED_TEXTS = 128
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")


def plain_prompt(question: Question, passages: Sequence[Passage], num_tokens: Callable[[str], int]) -> Prompt:
    """Return a prompt without a template: passages from the best on, then turns from the newest back, as long as there is room.

    Control tokens of chat templates ("<|im_end|>") become blanks in every text: without the assembler nobody else does it.

    Args:
        question: whole in any case.
        passages: best first.
        num_tokens: of each text of `texts_of`; more are a bound, fewer would overfill the model's context.
    """
    room = PLAIN_PROMPT_TOKENS - num_tokens(_plain(question.text)) - num_tokens(_PLAIN_SYSTEM) - 2 * TOKENS_PER_TURN
    blocks: list[str] = []
    used: list[str] = []
    for passage in passages:
        block = _block(passage)
        cost = num_tokens(block) + 1  # the blank line behind it
        if cost > room:
            break
        room -= cost
        blocks.append(block)
        used.append(passage.passage_id)
    turns: list[Message] = []
    for turn in reversed(question.history):
        content = _plain(turn.content)
        cost = num_tokens(content) + TOKENS_PER_TURN
        if cost > room:
            break
        room -= cost
        turns.insert(0, Message(role=turn.role, content=content))
    asked = "\n\n".join([*blocks, _plain(question.text)])
    messages = (Message(role="system", content=_PLAIN_SYSTEM), *turns, Message(role="user", content=asked))
    return Prompt(messages=messages, used_passage_ids=tuple(used))


def texts_of(question: Question, passages: Sequence[Passage]) -> list[str]:
    """Return the texts whose tokens `plain_prompt` asks for, the most important first; not those that have no room anyway."""
    texts = [_plain(question.text), _PLAIN_SYSTEM, *map(_block, passages), *(_plain(turn.content) for turn in reversed(question.history))]
    counted: list[str] = []
    num_bytes = 0
    for text in dict.fromkeys(texts):
        num_bytes += len(text.encode())
        if num_bytes > _MOST_COUNTED_BYTES or len(counted) == _MOST_COUNTED_TEXTS:
            break
        counted.append(text)
    return counted


def _block(passage: Passage) -> str:
    return _plain(f"{passage.title}\n{passage.text}").strip()


def _plain(text: str) -> str:
    return _CONTROL_TOKEN.sub(" ", text)  # a blank, lest what is left and right of it makes another
