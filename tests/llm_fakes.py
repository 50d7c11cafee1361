"""Fakes of the llm service's protocols: an engine that answers from a list, and adapters that are just names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager

from services.common.events.chat import Message, Sampling
from services.common.platform.errors import NotFound
from services.llm.core.generation import LoadedAdapter, Piece

ANSWER = (Piece(text="Hello", num_tokens=1), Piece(text=" there", num_tokens=1), Piece(text=".", num_tokens=1, finish_reason="stop"))


class FakeEngine:
    """One token per character of the prompt; every answer is the same."""

    def __init__(
        self,
        pieces: Sequence[Piece] = ANSWER,
        *,
        context_tokens: int = 1000,
        control_tokens: tuple[str, ...] = (),
        forever: bool = False,
        refuses: type[Exception] | None = None,
    ) -> None:
        self.pieces, self.context_tokens, self.control_tokens, self.forever = pieces, context_tokens, control_tokens, forever
        self.refuses = refuses
        self.fails: type[Exception] | None = None
        self.prompts: list[list[Message]] = []
        self.samplings: list[Sampling] = []
        self.scored: list[tuple[int, int]] = []
        self.adapters: list[LoadedAdapter] = []
        self.loaded: list[int] = []
        self.warmed: list[str] = []
        self.open = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        self.prompts.append(list(messages))
        return [0] * sum(len(message.content) for message in messages)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    async def encode_text(self, text: str) -> list[int]:
        return [0] * len(text)

    async def log_likelihood(self, tokens: list[int], num_scored: int, adapter: LoadedAdapter | None) -> float:
        if adapter is not None:
            self.adapters.append(adapter)
        self.scored.append((len(tokens), num_scored))
        return -0.5 * num_scored

    async def generate(self, tokens: list[int], sampling: Sampling, adapter: LoadedAdapter | None) -> AsyncGenerator[Piece, None]:
        self.samplings.append(sampling)
        if adapter is not None:
            self.adapters.append(adapter)
        self.open += 1
        try:
            while self.forever:
                yield Piece(text="on ", num_tokens=1)
                await asyncio.sleep(0.001)
            for piece in self.pieces:
                yield piece
            if self.fails is not None:
                raise self.fails("the engine died")
        finally:
            self.open -= 1

    async def add_adapter(self, adapter: LoadedAdapter) -> None:
        await self.gate.wait()
        if self.refuses is not None:
            raise self.refuses(f"no {adapter.name}")
        self.loaded.append(adapter.lora_id)

    async def warm(self, adapter: LoadedAdapter) -> None:
        self.warmed.append(adapter.name)

    async def remove_adapter(self, lora_id: int) -> None:
        self.loaded.remove(lora_id)


class FakeAdapters:
    """Adapters that are loaded by being named."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.held: list[str] = []

    @contextmanager
    def lease(self, name: str) -> Iterator[LoadedAdapter]:
        if name not in self.names:
            raise NotFound(f"adapter {name} is not loaded")
        self.held.append(name)
        try:
            yield LoadedAdapter(name=name, lora_id=1, folder="/nowhere")
        finally:
            self.held.remove(name)
