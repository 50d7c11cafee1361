"""A streamed answer: pieces of text, and what the first and the last message say about it. The part that both clients share."""

from __future__ import annotations

from tunemesh.common.v1 import chat_pb2
from tunemesh.router.v1 import router_service_pb2 as router_pb2

from tunemesh_client.errors import Incomplete
from tunemesh_client.messages import Answer, Passage, passage_of


class AnswerState:
    """What is known of an answer so far. Header fields are empty before the first message, `finish_reason` and tokens before the last."""

    __slots__ = ("_header", "_pieces", "attempts", "completion_tokens", "finish_reason", "prompt_tokens")

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.attempts = 0
        self._reset()

    def _reset(self) -> None:
        self._header = router_pb2.GenerateHeader()
        self._pieces: list[str] = []
        self.finish_reason = ""
        self.prompt_tokens = self.completion_tokens = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def request_id(self) -> str:
        """Feedback about the answer names it."""
        return self._header.request_id

    @property
    def model_version(self) -> str:
        """The model, with its adapter when there is one."""
        return self._header.model_version

    @property
    def prompt_version(self) -> str:
        """E.g. "answer@v3"."""
        return self._header.prompt_version

    @property
    def experiment(self) -> str:
        """The experiment that the user is in; empty when none runs."""
        return self._header.experiment

    @property
    def variant(self) -> str:
        """The variant that answers."""
        return self._header.variant

    @property
    def degraded_reason(self) -> str:
        """Empty when the answer is whole; else, joined by commas, what is missing."""
        return self._header.degraded_reason

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The passages in the prompt, in its order."""
        return tuple(passage_of(passage) for passage in self._header.passages)

    def answer(self) -> Answer:
        """Return all of it at once, as far as it has come."""
        return Answer(
            text=self.text,
            request_id=self.request_id,
            model_version=self.model_version,
            prompt_version=self.prompt_version,
            experiment=self.experiment,
            variant=self.variant,
            degraded_reason=self.degraded_reason,
            passages=self.passages,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )

    def _take(self, message: router_pb2.GenerateResponse) -> str:
        """Take note of one message and return its text."""
        if message.HasField("header"):
            self._header = message.header
        if message.finish_reason:
            self.finish_reason = message.finish_reason
            self._count(message.usage)
        if message.text:
            self._pieces.append(message.text)
        return message.text

    def _count(self, usage: chat_pb2.TokenUsage) -> None:
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens

    def _incomplete(self, request: str) -> Incomplete:
        """Return the error of a stream that ended with OK, but without its last message."""
        return Incomplete("the stream ended with OK, but without a finish_reason", "INCOMPLETE", request, self.attempts)
