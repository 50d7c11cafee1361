"""One answer in the making: what has been found and decided so far, what is missing, and what the caller was told. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.events.chat import Passage, Usage
from services.router.generation import AnswerCut, Generation, Header, OutOfTime, Piece, Prompt
from services.router.question import Question


@dataclass(slots=True, kw_only=True)
class Draft:
    """One answer in the making."""

    question: Question
    request_id: str
    variant: str
    deadline_s: float
    started_at_ms: int
    reasons: list[str] = field(default_factory=list)
    passages: tuple[Passage, ...] = ()
    prompt: Prompt = field(default_factory=lambda: Prompt(messages=()))
    adapter: str = ""
    model_version: str = ""
    texts: list[str] = field(default_factory=list)
    first_token_at_ms: int = 0
    finish_reason: str = ""
    usage: Usage | None = None
    header: Header | None = None

    def degrade(self, reasons: str) -> None:
        """Note what is missing; `reasons` may be several, joined by commas, or none."""
        self.reasons.extend(reason for reason in reasons.split(",") if reason and reason not in self.reasons)

    def open(self, now_ms: int) -> Header:
        """Make the header that the caller gets before the first text; from here on nothing is tried again."""
        self.first_token_at_ms = now_ms
        self.header = Header(
            request_id=self.request_id,
            experiment="",
            variant=self.variant,
            model_version=self.model_version,
            prompt_version=self.prompt.prompt_version,
            degraded_reason=",".join(self.reasons),
            passages=self.passages,
        )
        return self.header

    def take(self, piece: Piece) -> None:
        """Keep one piece of what the llm sends."""
        self.model_version = piece.model_version or self.model_version
        if piece.text:
            self.texts.append(piece.text)
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage

    def cut(self, cause: Exception) -> AnswerCut | OutOfTime:
        """Return the error for a stream that broke after its first text.

        Its number of tokens is a lower bound: a piece holds one token, or more when the llm was ahead of its reader.
        """
        kind = OutOfTime if isinstance(cause, OutOfTime) else AnswerCut
        return kind(f"the answer was cut after {len(self.texts)} tokens ({cause}); retry from the start")

    def finished(self, now_ms: int) -> Generation | None:
        """Return the answer for the log; None when the caller has seen nothing of it."""
        if self.header is None:
            return None
        return Generation(
            question=self.question,
            header=self.header,
            messages=self.prompt.messages,
            answer="".join(self.texts),
            finish_reason=self.finish_reason,
            usage=self.usage or Usage(completion_tokens=len(self.texts)),
            started_at_ms=self.started_at_ms,
            first_token_at_ms=self.first_token_at_ms,
            finished_at_ms=now_ms,
        )
