"""The feedback collector's way to Kafka."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from services.common.events.envelope import headers_for
from services.common.events.feedback import Feedback
from services.common.events.topics import FEEDBACK
from services.common.events.wire.feedback import feedback_message
from services.common.platform.errors import InvalidInput
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.kafka_record import NotAcknowledged, Record
from services.common.platform.traceparent import current_traceparent
from services.feedback_collector.core import FeedbackLog

# Kept back from the caller's deadline, so that UNAVAILABLE reaches it before the deadline does.
_RESERVE_S = 0.02
_MIN_TIMEOUT_S = 0.001


class KafkaFeedbackLog(FeedbackLog):
    """Writes feedback.v1, keyed by user, with the active span in the headers."""

    def __init__(self, producer: AsyncProducer) -> None:
        """The producer is started and stopped by its owner."""
        self._producer = producer

    @override
    async def write(self, feedback: Sequence[Feedback], *, timeout_s: float | None) -> None:
        traceparent = current_traceparent()
        records = [_to_record(item, traceparent) for item in feedback]
        limit_s = None if timeout_s is None else max(timeout_s - _RESERVE_S, _MIN_TIMEOUT_S)
        try:
            await self._producer.send(records, timeout_s=limit_s)
        except NotAcknowledged as error:
            if error.refused and not error.records:
                rest = len(records) - len(error.refused)
                said = f"Kafka never takes {len(error.refused)} of {len(records)} feedbacks ({error.refused[0].cause})"
                raise InvalidInput(f"{said}; the other {rest} are written" if rest else said) from error
            raise


def _to_record(item: Feedback, traceparent: str) -> Record:
    value = feedback_message(item).SerializeToString()
    headers = headers_for(
        FEEDBACK.value, "/tunemesh/feedback_collector", event_id=item.feedback_id, time_ms=item.accepted_at_ms, traceparent=traceparent
    )
    return Record(FEEDBACK.name, item.user_id.encode(), value, headers)
