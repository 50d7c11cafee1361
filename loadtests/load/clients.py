"""The clients that the load drives: the router, the feedback collector, and a Kafka producer. Blocking calls, for gevent's greenlets.

Every call fills in a `Call`. Recommend and feedback are retried with the same idempotency key until a deadline, as a careful product
backend does; a stream is never retried, so that each cut is seen. Knows neither Locust nor schedules.

Unary calls go through `future`: under gevent a blocking call polls in a pool of few threads, so that sixty calls that wait for a server
which is away make every other call of the process seconds slower; futures share one poller per channel.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from kafka.errors import KafkaError
from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from loadtests.load.calls import NOTHING_TO_REPORT, Call
from services.common.events.envelope import headers_for
from services.common.events.topics import FEEDBACK
from services.common.platform.errors import Unavailable
from services.common.platform.kafka_producer import RenewedProducer

_RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_DELIVERY_TIMEOUT_MS = 5_000
_KEPT_ANSWERS = 200
# A killed server must be found again quickly: gRPC's own pause before the next attempt to connect grows to two minutes.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 16 << 20),
)


class SteadyClock:
    """Unix time that never steps: the wall clock once, the monotonic one since."""

    def __init__(self) -> None:
        """Read both clocks."""
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Return Unix seconds."""
        return self._offset_s + time.monotonic()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that feedback can refer to: `item_id` is the first item of a recommendation, empty of a model's answer."""

    request_id: str
    user_id: str
    item_id: str


class Answers:
    """The latest answers without feedback; each is handed out once: the few of the model first, then the oldest of those kept.

    Few are kept, so that feedback comes seconds after its answer, as users' does. Were all kept, answers that outnumber feedback would
    age as long as the load lasts, until the joiner's late horizon has passed for each.
    """

    def __init__(self, limit: int = _KEPT_ANSWERS) -> None:
        """Keep at most `limit` of the model and `limit` recommendations."""
        self._of_model: deque[Answer] = deque(maxlen=limit)
        self._recommendations: deque[Answer] = deque(maxlen=limit)

    def put(self, answer: Answer) -> None:
        """Keep one."""
        (self._recommendations if answer.item_id else self._of_model).append(answer)

    def take(self) -> Answer | None:
        """Return one, None when there is none."""
        kept = self._of_model or self._recommendations
        return kept.popleft() if kept else None


class _Refused(Exception):
    """An attempt that failed."""

    def __init__(self, status: str, detail: str, *, may_retry: bool) -> None:
        super().__init__(detail)
        self.status, self.detail, self.may_retry = status, detail, may_retry


class Retrying:
    """Repeats an attempt, with growing random pauses, until it succeeds or the deadline has passed."""

    def __init__(self, clock: SteadyClock, *, attempt_timeout_s: float, deadline_s: float) -> None:
        """Each attempt may take `attempt_timeout_s`, all of them together about `deadline_s`."""
        self._clock, self._attempt_timeout_s, self._deadline_s = clock, attempt_timeout_s, deadline_s
        self._source = random.Random(0)

    def run(self, call: Call, attempt: Callable[[float], None]) -> None:
        """Call `attempt(timeout_s)`; leave in `call` how it went."""
        deadline_s = call.started_s + self._deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = deadline_s - self._clock.now_s()
            call.attempts += 1
            try:
                attempt(min(self._attempt_timeout_s, max(left_s, 0.05)))
            except _Refused as refused:
                call.detail = refused.detail
                now_s = self._clock.now_s()
                call.failed_at_s = call.failed_at_s or now_s
                if not refused.may_retry or now_s + pause_s >= deadline_s:
                    call.status = refused.status
                    return
            else:
                return
            time.sleep(pause_s * self._source.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class RouterClient:
    """Calls the router."""

    def __init__(self, address: str, clock: SteadyClock, retrying: Retrying, answers: Answers, *, stream_timeout_s: float) -> None:
        """Nothing is sent before the first call. `answers` gets what feedback can refer to."""
        self._clock, self._retrying, self._answers, self._stream_timeout_s = clock, retrying, answers, stream_timeout_s
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = router_grpc.RouterServiceStub(self._channel)

    def recommend(self, call: Call, user_id: str, candidates: Sequence[str], *, limit: int) -> None:
        """Ask for the best `limit` items."""
        request = router_pb2.RecommendRequest(user_id=user_id, candidates=candidates, limit=limit, idempotency_key=str(uuid.uuid4()))

        def attempt(timeout_s: float) -> None:
            try:
                response = self._stub.Recommend.future(request, timeout=timeout_s).result()
            except grpc.RpcError as error:
                raise _refused(error) from error
            call.request_id, call.degraded = response.request_id, response.degraded_reason
            if response.items:
                self._answers.put(Answer(response.request_id, user_id, response.items[0].item_id))

        self._retrying.run(call, attempt)

    def generate(self, call: Call, user_id: str, question: str, *, task: str, max_tokens: int) -> None:
        """Ask a question and read the whole stream; one attempt."""
        sampling = chat_pb2.Sampling(temperature=0.0, max_tokens=max_tokens)
        request = router_pb2.GenerateRequest(user_id=user_id, task=task, question=question, retrieve=True, sampling=sampling)
        call.attempts = 1
        num_messages = 0
        try:
            for message in self._stub.Generate(request, timeout=self._stream_timeout_s):
                if message.HasField("header"):
                    call.request_id, call.degraded = message.header.request_id, message.header.degraded_reason
                if message.text:
                    num_messages += 1
                    call.last_text_s = self._clock.now_s()
                    call.first_text_s = call.first_text_s or call.last_text_s
                if message.finish_reason:
                    call.finish_reason = message.finish_reason
                    call.tokens = message.usage.completion_tokens
        except grpc.RpcError as error:
            refused = _refused(error)
            call.status, call.detail = refused.status, refused.detail
        else:
            if not call.finish_reason:
                call.status, call.detail = "INCOMPLETE", "the stream ended with OK, but without a finish_reason"
            elif call.first_text_s is not None:
                self._answers.put(Answer(call.request_id, user_id, ""))
        call.tokens = call.tokens or num_messages

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class CollectorClient:
    """Reports feedback through the feedback collector."""

    def __init__(self, address: str, retrying: Retrying, answers: Answers) -> None:
        """Nothing is sent before the first call."""
        self._retrying, self._answers = retrying, answers
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = collector_grpc.FeedbackCollectorServiceStub(self._channel)

    def report(self, call: Call, liking: float) -> None:
        """Rate the oldest answer that nobody has rated. `liking`: 0 to 1."""
        answer = self._answers.take()
        if answer is None:
            call.status = NOTHING_TO_REPORT
            return
        feedback = _feedback(call, answer, liking)
        request = collector_pb2.SubmitFeedbackRequest(feedback=[feedback])

        def attempt(timeout_s: float) -> None:
            try:
                self._stub.SubmitFeedback.future(request, timeout=timeout_s).result()
            except grpc.RpcError as error:
                raise _refused(error) from error

        self._retrying.run(call, attempt)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class ProducerClient:
    """Writes feedback straight to feedback.v1, as a third-party event producer does: idempotent, acks=all."""

    def __init__(self, bootstrap_servers: str, clock: SteadyClock, retrying: Retrying, answers: Answers) -> None:
        """Nothing is connected before the first call."""
        self._bootstrap, self._clock, self._retrying, self._answers = bootstrap_servers, clock, retrying, answers
        self._producer: RenewedProducer | None = None
        self._lock = threading.Lock()

    def report(self, call: Call, liking: float) -> None:
        """Rate the oldest answer that nobody has rated; done when the broker has acknowledged it. `liking`: 0 to 1."""
        answer = self._answers.take()
        if answer is None:
            call.status = NOTHING_TO_REPORT
            return
        feedback = _feedback(call, answer, liking)
        feedback.accepted_at_ms = int(self._clock.now_s() * 1e3)
        value, key = feedback.SerializeToString(), feedback.user_id.encode()
        headers = headers_for("tunemesh.events.v1.Feedback", "/loadtests/load")

        def attempt(timeout_s: float) -> None:
            try:
                self._connected().send(FEEDBACK.name, value, key, headers).get(timeout=timeout_s)
            except (KafkaError, Unavailable) as error:
                raise _Refused(type(error).__name__, str(error), may_retry=True) from error

        self._retrying.run(call, attempt)

    def close(self) -> None:
        """Close the connection; every call that succeeded was acknowledged."""
        if self._producer is not None:
            self._producer.close()

    def _connected(self) -> RenewedProducer:
        """Return the producer. It renews itself after a failure; a repeat is harmless, since the feedback id is the same."""
        with self._lock:
            if self._producer is None:
                self._producer = RenewedProducer(self._bootstrap, client_id="load-producer", delivery_timeout_ms=_DELIVERY_TIMEOUT_MS)
            return self._producer


def _feedback(call: Call, answer: Answer, liking: float) -> feedback_pb2.Feedback:
    call.feedback_id, call.request_id = str(uuid.uuid4()), answer.request_id
    call.feedback_kind = "rating" if answer.item_id else "score"
    return feedback_pb2.Feedback(
        feedback_id=call.feedback_id,
        request_id=answer.request_id,
        user_id=answer.user_id,
        item_id=answer.item_id,
        kind=call.feedback_kind,
        value=float(round(1 + 4 * liking)) if answer.item_id else liking,
    )


def _refused(error: grpc.RpcError) -> _Refused:
    code = error.code()
    return _Refused(code.name, error.details() or "", may_retry=code in _RETRYABLE)
