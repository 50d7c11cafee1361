"""tunemesh.common.v1: from messages of the contracts to turns, passages, sampling and usage, and back."""

from __future__ import annotations

from collections.abc import Iterable

from tunemesh.common.v1 import chat_pb2, passage_pb2

from services.common.events.chat import Message, Passage, Sampling, Usage


def messages_of(turns: Iterable[chat_pb2.ChatMessage]) -> tuple[Message, ...]:
    """Return the turns of a chat."""
    return tuple(Message(turn.role, turn.content) for turn in turns)


def chat_messages(messages: Iterable[Message]) -> list[chat_pb2.ChatMessage]:
    """Return turns as the contract's messages."""
    return [chat_pb2.ChatMessage(role=message.role, content=message.content) for message in messages]


def passages_of(passages: Iterable[passage_pb2.Passage]) -> tuple[Passage, ...]:
    """Return the passages of a message."""
    return tuple(Passage(passage_id=each.passage_id, title=each.title, text=each.text, score=each.score) for each in passages)


def passage_messages(passages: Iterable[Passage]) -> list[passage_pb2.Passage]:
    """Return passages as the contract's messages."""
    return [passage_pb2.Passage(passage_id=each.passage_id, title=each.title, text=each.text, score=each.score) for each in passages]


def sampling_of(sampling: chat_pb2.Sampling) -> Sampling:
    """Return the sampling of a message."""
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=tuple(sampling.stop),
        reproducible=sampling.reproducible,
    )


def sampling_message(sampling: Sampling) -> chat_pb2.Sampling:
    """Return sampling as the contract's message."""
    return chat_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=sampling.stop,
        reproducible=sampling.reproducible,
    )


def usage_of(usage: chat_pb2.TokenUsage) -> Usage:
    """Return the usage of a message."""
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def usage_message(usage: Usage) -> chat_pb2.TokenUsage:
    """Return usage as the contract's message."""
    return chat_pb2.TokenUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
