"""Between the wire and the door's values: parses and checks what is read, builds what is written. No I/O, no clock."""

from __future__ import annotations

from typing import Any

from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import dead_letter_pb2, inference_pb2
from tunemesh.router.v1 import router_service_pb2

from services.common.events.dead_letters import dead_letter
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.limits import check_id
from streams.inference.core import Answer, Failure, Question


def read_question(message: Any) -> Question:
    """Return the question in a message of inference.requests.v1; its `body` is the router's GenerateRequest, which the router checks.

    Raises:
        MalformedRecord: it cannot be parsed, or lacks what the door needs.
    """
    read = parse_value(message.value, tuple(message.headers or ()), inference_pb2.InferenceRequest)
    check_id("inference_id", read.inference_id, MalformedRecord)
    if read.expires_at_ms < 0:
        raise MalformedRecord(f"expires_at_ms is {read.expires_at_ms}, not a time in Unix milliseconds")
    body = router_service_pb2.GenerateRequest(
        user_id=read.user_id,
        task=read.task,
        question=read.question,
        history=read.history,
        context=read.context,
        retrieve=read.retrieve,
        retrieval_source=read.retrieval_source,
        sampling=read.sampling,
    )
    return Question(inference_id=read.inference_id, expires_at_ms=read.expires_at_ms, body=body)


def write_answer(question: Question, answer: Answer, now_ms: int) -> bytes:
    """Return the InferenceResponse of an answer."""
    return inference_pb2.InferenceResponse(
        inference_id=question.inference_id,
        request_id=answer.request_id,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        model_version=answer.model_version,
        prompt_version=answer.prompt_version,
        degraded_reason=answer.degraded_reason,
        passage_ids=answer.passage_ids,
        usage=chat_pb2.TokenUsage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
        finished_at_ms=now_ms,
    ).SerializeToString()


def write_dead_letter(message: Any, failure: Failure, now_ms: int) -> dead_letter_pb2.DeadLetter:
    """Return the DeadLetter of a request without an answer."""
    return dead_letter(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        reason=failure.reason,
        detail=failure.detail,
        key=message.key,
        value=message.value,
        headers=tuple(message.headers or ()),
        failed_at_ms=now_ms,
    )
