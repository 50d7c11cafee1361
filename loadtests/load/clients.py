"""What the load does with `tunemesh_client`: asks, reports, and fills in a `Call`. Blocking calls, for gevent's greenlets.

Recommend and feedback are tried again with the same idempotency key until a deadline, as a careful product backend does; a stream never
is, so that each cut is seen. The client's own retries are off: each failed attempt is to be counted. Knows neither Locust nor schedules.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtests.load.calls import NOTHING_TO_REPORT, Call
from tunemesh_client import Client, EventProducer, Feedback, RetryPolicy, Sampling, Transport, TunemeshError
from tunemesh_client.ids import new_id

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_KEPT_ANSWERS = 200
_ONCE = RetryPolicy(retries=0)
# A killed server must be found again quickly, and a load that goes on keeps each pause short.
_TRANSPORT = Transport(plaintext=True, options={"grpc.max_reconnect_backoff_ms": 500})


def open_client(router: str, collector: str, *, stream_timeout_s: float) -> Client:
    """Return a client of the mesh that tries everything once; nothing is connected before the first call."""
    return Client(router, collector, transport=_TRANSPORT, retry=_ONCE, generate_deadline_s=stream_timeout_s, gevent=True)


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


class Retrying:
    """Repeats an attempt, with growing random pauses, until it succeeds or the deadline has passed."""

    def __init__(self, clock: SteadyClock, *, attempt_timeout_s: float, deadline_s: float) -> None:
        """Each attempt may take `attempt_timeout_s`, all of them together about `deadline_s`."""
        self._clock, self._attempt_timeout_s, self._deadline_s = clock, attempt_timeout_s, deadline_s
        self._source = random.Random(0)

    def run(self, call: Call, attempt: Callable[[float], object]) -> None:
        """Call `attempt(timeout_s)`; leave in `call` how it went."""
        deadline_s = call.started_s + self._deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = deadline_s - self._clock.now_s()
            call.attempts += 1
            try:
                attempt(min(self._attempt_timeout_s, max(left_s, 0.05)))
            except TunemeshError as error:
                call.detail = error.details
                now_s = self._clock.now_s()
                call.failed_at_s = call.failed_at_s or now_s
                if not error.retry_helps or now_s + pause_s >= deadline_s:
                    call.status = error.status
                    return
            else:
                return
            time.sleep(pause_s * self._source.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class RouterClient:
    """Calls the router."""

    def __init__(self, client: Client, clock: SteadyClock, retrying: Retrying, answers: Answers) -> None:
        """`answers` gets what feedback can refer to."""
        self._client, self._clock, self._retrying, self._answers = client, clock, retrying, answers

    def recommend(self, call: Call, user_id: str, candidates: Sequence[str], *, limit: int) -> None:
        """Ask for the best `limit` items."""
        key = new_id()

        def attempt(timeout_s: float) -> None:
            found = self._client.recommend(user_id, candidates, limit, idempotency_key=key, deadline_s=timeout_s)
            call.request_id, call.degraded = found.request_id, found.degraded_reason
            if found.items:
                self._answers.put(Answer(found.request_id, user_id, found.items[0].item_id))

        self._retrying.run(call, attempt)

    def generate(self, call: Call, user_id: str, question: str, *, task: str, max_tokens: int) -> None:
        """Ask a question and read the whole stream; one attempt."""
        stream = self._client.generate(user_id, question, task=task, retrieve=True, sampling=Sampling(max_tokens=max_tokens))
        call.attempts = 1
        num_pieces = 0
        try:
            for _ in stream:
                num_pieces += 1
                call.last_text_s = self._clock.now_s()
                call.first_text_s = call.first_text_s or call.last_text_s
        except TunemeshError as error:
            call.status, call.detail = error.status, error.details
        else:
            if call.first_text_s is not None:
                self._answers.put(Answer(stream.request_id, user_id, ""))
        call.request_id, call.degraded, call.finish_reason = stream.request_id, stream.degraded_reason, stream.finish_reason
        call.tokens = stream.completion_tokens or num_pieces


class CollectorClient:
    """Reports feedback through the feedback collector."""

    def __init__(self, client: Client, retrying: Retrying, answers: Answers) -> None:
        """`answers` has what can be reported on."""
        self._client, self._retrying, self._answers = client, retrying, answers

    def report(self, call: Call, liking: float) -> None:
        """Rate the oldest answer that nobody has rated. `liking`: 0 to 1."""
        feedback = _feedback(call, self._answers, liking)
        if feedback is not None:
            self._retrying.run(call, lambda timeout_s: self._client.feedback(feedback, deadline_s=timeout_s))


class ProducerClient:
    """Writes feedback straight to feedback.v1, as a third-party event producer does."""

    def __init__(self, bootstrap_servers: str, retrying: Retrying, answers: Answers) -> None:
        """Nothing is connected before the first call."""
        self._retrying, self._answers = retrying, answers
        self._producer = EventProducer(bootstrap_servers, source="/loadtests/load", client_id="load-producer", retry=_ONCE)

    def report(self, call: Call, liking: float) -> None:
        """Rate the oldest answer that nobody has rated; done when the broker has acknowledged it. `liking`: 0 to 1."""
        feedback = _feedback(call, self._answers, liking)
        if feedback is not None:
            self._retrying.run(call, lambda timeout_s: self._producer.send(feedback, deadline_s=timeout_s))

    def close(self) -> None:
        """Close the connection; every call that succeeded was acknowledged."""
        self._producer.close()


def _feedback(call: Call, answers: Answers, liking: float) -> Feedback | None:
    """Return feedback about the next answer, and note it in the call; None when there is no answer left."""
    answer = answers.take()
    if answer is None:
        call.status = NOTHING_TO_REPORT
        return None
    feedback = Feedback(
        request_id=answer.request_id,
        user_id=answer.user_id,
        item_id=answer.item_id,
        kind="rating" if answer.item_id else "score",
        value=float(round(1 + 4 * liking)) if answer.item_id else liking,
    )
    call.feedback_id, call.request_id, call.feedback_kind = feedback.feedback_id, feedback.request_id, feedback.kind
    return feedback
