"""FeedbackCollectorService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

from typing import Any

import grpc.aio
from opentelemetry.metrics import Meter
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2, feedback_collector_service_pb2_grpc

from services.common.events.wire.feedback import feedback_of
from services.feedback_collector.core import Collector


class FeedbackCollectorServicer(feedback_collector_service_pb2_grpc.FeedbackCollectorServiceServicer):
    """Accepts first; joining happens later."""

    def __init__(self, collector: Collector, meter: Meter) -> None:
        """`meter` gets the counter `feedback_collector.feedback` by outcome (accepted, duplicate)."""
        self._collector = collector
        self._counter = meter.create_counter("feedback_collector.feedback", description="Feedback by what became of it.")

    async def SubmitFeedback(
        self, request: feedback_collector_service_pb2.SubmitFeedbackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> feedback_collector_service_pb2.SubmitFeedbackResponse:
        """Write the feedback and answer once the broker has acknowledged it. Errors: see the proto."""
        feedback = [feedback_of(item) for item in request.feedback]
        receipts = await self._collector.submit(feedback, remaining_s=context.time_remaining())
        num_duplicates = sum(receipt.duplicate for receipt in receipts)
        if num_duplicates < len(receipts):
            self._counter.add(len(receipts) - num_duplicates, {"outcome": "accepted"})
        if num_duplicates:
            self._counter.add(num_duplicates, {"outcome": "duplicate"})
        return feedback_collector_service_pb2.SubmitFeedbackResponse(
            receipts=[
                feedback_collector_service_pb2.FeedbackReceipt(
                    feedback_id=receipt.feedback_id, accepted_at_ms=receipt.accepted_at_ms, duplicate=receipt.duplicate
                )
                for receipt in receipts
            ]
        )
