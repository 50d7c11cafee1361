"""What the router writes to Kafka: the records of exposures.v1 and generations.v1. Each carries the span that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tunemesh.events.v1 import exposure_pb2, generation_pb2

from services.common.events.envelope import headers_for
from services.common.events.topics import EXPOSURES, GENERATIONS, Topic
from services.common.events.wire.attributes import write_attributes
from services.common.events.wire.chat import chat_messages, sampling_message, usage_message
from services.common.platform.kafka_record import Record
from services.common.platform.traceparent import current_traceparent
from services.router.core import Exposure, Ranked
from services.router.generation import Generation

_SOURCE = "/tunemesh/router"


class EventLog(Protocol):
    """What the logs need of `services.router.event_log.KafkaEventLog`."""

    def append(self, record: Record) -> None:
        """Keep the record for Kafka, or drop and count it."""
        ...


class Exposures:
    """`services.router.core.ExposureLog` over the event log."""

    def __init__(self, log: EventLog) -> None:
        """The log is started and closed by its owner."""
        self._log = log

    def append(self, exposure: Exposure) -> None:
        """Keep the exposure for Kafka."""
        self._log.append(exposure_record(exposure))


class Generations:
    """`services.router.generation.GenerationLog` over the event log."""

    def __init__(self, log: EventLog) -> None:
        """The log is started and closed by its owner."""
        self._log = log

    def append(self, generation: Generation) -> None:
        """Keep the answer for Kafka."""
        self._log.append(generation_record(generation))


def exposure_record(exposure: Exposure) -> Record:
    """Encode an exposure for exposures.v1."""
    answer = exposure.recommendation
    ranking = answer.ranking
    message = exposure_pb2.Exposure(
        request_id=answer.request_id,
        user_id=exposure.user_id,
        exposed_at_ms=exposure.exposed_at_ms,
        experiment=answer.experiment,
        variant=answer.variant,
        model_version=ranking.model_version,
        degraded_reason=ranking.degraded_reason,
        idempotency_key=exposure.idempotency_key,
        candidates_given=exposure.candidates_given,
    )
    write_attributes(exposure.context, message.context)
    write_attributes(exposure.profile, message.profile)
    if ranking.packed is None:
        logged = _logged(ranking.items) if ranking.logged is None else ranking.logged
        message.item_ids.extend(logged.item_ids)
        message.scores.extend(logged.scores)
        message.reasons.extend(logged.reasons)
        message.features_block, message.schema_hash = ranking.features_block, ranking.schema_hash
        value = message.SerializeToString()
    else:
        # Two serialised messages of one type, one behind the other, are the message with the fields of both.
        value = message.SerializeToString() + ranking.packed.exposed
    return _record(EXPOSURES, exposure.user_id, value, answer.request_id, exposure.exposed_at_ms)


@dataclass(frozen=True, slots=True)
class _Logged:
    """Meets `services.router.core.LoggedItems`."""

    item_ids: list[str]
    scores: list[float]
    reasons: list[str]


def _logged(items: Sequence[Ranked]) -> _Logged:
    """Return the columns of items that came without.

    Without the ranker a list is sorted by something else, whose numbers would be taken for the model's: then there are no scores.
    """
    scores = [item.score for item in items] if all(item.task_scores for item in items) else []
    return _Logged([item.item_id for item in items], scores, [",".join(item.reasons) for item in items])


def generation_record(generation: Generation) -> Record:
    """Encode an answer for generations.v1."""
    question, header = generation.question, generation.header
    value = generation_pb2.Generation(
        request_id=header.request_id,
        user_id=question.user_id,
        task=question.task,
        question=question.text,
        messages=chat_messages(generation.messages),
        answer=generation.answer,
        finish_reason=generation.finish_reason,
        experiment=header.experiment,
        variant=header.variant,
        model_version=header.model_version,
        prompt_version=header.prompt_version,
        passage_ids=[passage.passage_id for passage in header.passages],
        degraded_reason=header.degraded_reason,
        usage=usage_message(generation.usage),
        sampling=sampling_message(question.sampling),
        started_at_ms=generation.started_at_ms,
        first_token_at_ms=generation.first_token_at_ms,
        finished_at_ms=generation.finished_at_ms,
        context_given=bool(question.context),
    )
    return _record(GENERATIONS, question.user_id, value.SerializeToString(), header.request_id, generation.finished_at_ms)


def _record(topic: Topic, user_id: str, value: bytes, event_id: str, time_ms: int) -> Record:
    headers = headers_for(topic.value, _SOURCE, event_id=event_id, time_ms=time_ms, traceparent=current_traceparent())
    return Record(topic.name, user_id.encode(), value, headers)
