"""The prompt that the router makes by itself while the prompt assembler is unavailable. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.common.events.chat import Message, Passage
from services.router.generation import Prompt
from services.router.question import Question

_PLAIN_SYSTEM = "Answer the question briefly. Use the passages when they help."
# About a thousand tokens: fits every context length that is worth serving.
_PLAIN_PROMPT_CHARS = 4_000
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")


def plain_prompt(question: Question, passages: Sequence[Passage]) -> Prompt:
    """Return a prompt without a template: passages from the best on, then turns from the newest back, as long as there is room.

    Control tokens of chat templates ("<|im_end|>") become blanks in every text: without the assembler nobody else does it.
    """
    room = _PLAIN_PROMPT_CHARS - len(question.text)
    blocks: list[str] = []
    used: list[str] = []
    for passage in passages:
        block = _plain(f"{passage.title}\n{passage.text}").strip()
        if len(block) > room:
            break
        room -= len(block)
        blocks.append(block)
        used.append(passage.passage_id)
    turns: list[Message] = []
    for turn in reversed(question.history):
        if len(turn.content) > room:
            break
        room -= len(turn.content)
        turns.insert(0, Message(role=turn.role, content=_plain(turn.content)))
    asked = "\n\n".join([*blocks, _plain(question.text)])
    messages = (Message(role="system", content=_PLAIN_SYSTEM), *turns, Message(role="user", content=asked))
    return Prompt(messages=messages, used_passage_ids=tuple(used))


def _plain(text: str) -> str:
    return _CONTROL_TOKEN.sub(" ", text)  # a blank, lest what is left and right of it makes another
