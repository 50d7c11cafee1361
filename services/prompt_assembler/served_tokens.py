"""Token counts from the llm service, for a model whose tokenizer is not on this disk. Knows no chat template: what that adds is bounded."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import grpc
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from typing_extensions import override

from services.common.events.chat import Message
from services.common.language.token_bound import TOKENS_PER_PROMPT, TOKENS_PER_TURN, most_tokens
from services.common.platform.grpc_client import open_blocking_channel
from services.common.platform.traceparent import outgoing_metadata
from services.prompt_assembler.core.prompt import TokenCounter

# Of LlmService.CountTokens: texts in one call, and less than the bytes that it takes by default.
_TEXTS_A_CALL = 256
_BYTES_A_CALL = 128 * 1024
_TIMEOUT_S = 0.5
# A bound is at hand: an llm that did not answer is left alone for so long.
_PAUSE_S = 5.0
# One prompt is counted some ten times, with the same texts in it.
_MAX_KNOWN = 65_536

_log = logging.getLogger(__name__)


class ServedTokens(TokenCounter):
    """Meets `core.TokenCounter`: texts counted by the served model, bounded by bytes while the llm does not answer. Thread-safe."""

    def __init__(self, target: str) -> None:
        """`target`: host:port of the llm; connects with the first call."""
        self._target = target
        self._channel = open_blocking_channel(target)
        self._stub = llm_service_pb2_grpc.LlmServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._known: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._quiet_until_s = 0.0

    @property
    @override
    def is_exact(self) -> bool:
        return False

    @override
    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the contents and a bound of what the chat format adds. Blocks for half a second at most a call."""
        texts = [message.content for message in messages]
        counts = self._counted(texts)
        return sum(counts) + TOKENS_PER_TURN * len(texts) + TOKENS_PER_PROMPT

    @override
    def plain(self, text: str) -> str:
        """Return the text as it is: the llm breaks up the marks that its model knows."""
        return text

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _counted(self, texts: Sequence[str]) -> list[int]:
        names = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        with self._lock:
            known = {name: self._known[name] for name in names if name in self._known}
        unknown = {name: text for name, text in zip(names, texts, strict=True) if name not in known}
        known |= self._asked(unknown)
        return [known[name] if name in known else most_tokens(text) for name, text in zip(names, texts, strict=True)]

    def _asked(self, texts: dict[bytes, str]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        try:
            for batch in _batches(texts):
                if time.monotonic() < self._quiet_until_s:
                    break
                request = llm_service_pb2.CountTokensRequest(texts=batch.values())
                counts = self._stub.CountTokens(request, timeout=_TIMEOUT_S, metadata=outgoing_metadata()).counts
                found |= dict(zip(batch, counts, strict=True))
        except (grpc.RpcError, ValueError) as error:
            self._quiet_until_s = time.monotonic() + _PAUSE_S
            _log.warning("the llm at %s counts no tokens: they are bounded by bytes: %s", self._target, " ".join(str(error).split())[:200])
        with self._lock:
            if len(self._known) + len(found) > _MAX_KNOWN:
                self._known.clear()
            self._known |= found
        return found


def _batches(texts: dict[bytes, str]) -> Iterator[dict[bytes, str]]:
    """What one call may hold, again and again; a text that is too large by itself is in none, and stays bounded."""
    batch: dict[bytes, str] = {}
    num_bytes = 0
    for name, text in texts.items():
        size = len(text.encode())
        if size > _BYTES_A_CALL:
            continue
        if batch and (num_bytes + size > _BYTES_A_CALL or len(batch) == _TEXTS_A_CALL):
            yield batch
            batch, num_bytes = {}, 0
        batch[name] = text
        num_bytes += size
    if batch:
        yield batch
