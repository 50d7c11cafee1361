"""generations.v1: from its records to `Generation`. The router, which alone writes them, does so from what it answered."""

from __future__ import annotations

from tunemesh.events.v1 import generation_pb2

from services.common.events import generation as rules
from services.common.events.envelope import Headers, MalformedRecord, parse_value
from services.common.events.generation import Generation
from services.common.events.limits import check_time
from services.common.events.wire.chat import messages_of, usage_of
from services.common.platform.traceparent import traceparent_of


def read_generation(value: bytes | None, headers: Headers | None, now_ms: int) -> Generation:
    """Return the answer in a record.

    Args:
        value: of the record.
        headers: of the record.
        now_ms: wall clock, Unix milliseconds.
    Raises:
        MalformedRecord: it does not parse, or breaks the contract; the message names the field.
    """
    generation = parse_generation(value, headers)
    rules.check(generation, MalformedRecord)
    check_time("finished_at_ms", generation.finished_at_ms, now_ms, MalformedRecord)
    return generation


def parse_generation(value: bytes | None, headers: Headers | None) -> Generation:
    """Return the answer in a record, whatever its fields say; for a reader that shows it as it is.

    Raises:
        MalformedRecord: it does not parse.
    """
    return generation_of(parse_value(value, headers, generation_pb2.Generation), traceparent_of(headers))


def generation_of(message: generation_pb2.Generation, traceparent: str = "") -> Generation:
    """Return a message as an answer."""
    return Generation(
        request_id=message.request_id,
        user_id=message.user_id,
        task=message.task,
        question=message.question,
        messages=messages_of(message.messages),
        answer=message.answer,
        finish_reason=message.finish_reason,
        model_version=message.model_version,
        prompt_version=message.prompt_version,
        passage_ids=tuple(message.passage_ids),
        finished_at_ms=message.finished_at_ms,
        experiment=message.experiment,
        variant=message.variant,
        degraded_reason=message.degraded_reason,
        usage=usage_of(message.usage),
        started_at_ms=message.started_at_ms,
        first_token_at_ms=message.first_token_at_ms,
        context_given=message.context_given,
        traceparent=traceparent,
    )
