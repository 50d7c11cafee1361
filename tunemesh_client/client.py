"""The blocking client. `tunemesh_client.aio` has the same for asyncio."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from tunemesh_client.answers import AnswerState
from tunemesh_client.attributes import NONE, Attributes
from tunemesh_client.channels import LOCAL_PLAINTEXT, Transport
from tunemesh_client.errors import Cancelled, Internal, InvalidRequest, TunemeshError, error_of
from tunemesh_client.ids import Id
from tunemesh_client.messages import (
    GREEDY,
    Answer,
    Feedback,
    Passage,
    Receipt,
    Recommendation,
    Sampling,
    Turn,
    feedback_request,
    generate_request,
    receipts_of,
    recommend_request,
    recommendation_of,
)
from tunemesh_client.retry import UNTIL_THE_DEADLINE, Attempts, RetryPolicy
from tunemesh_client.tracing import active_traceparent

ResponseT = TypeVar("ResponseT")

DEADLINE_S = 10.0
GENERATE_DEADLINE_S = 60.0

OnRetry = Callable[[TunemeshError, float], None]
Call = Callable[..., Any]


class Client:
    """Calls the mesh: recommend, generate, feedback. Thread-safe; one client holds one connection per server. Close it, or use `with`.

    Every call has a deadline. A call that fails in a way in which a retry helps is repeated within the deadline with the same
    idempotency_key or feedback_id; what fails in the end is raised as a `TunemeshError`.
    """

    def __init__(
        self,
        router: str,
        feedback_collector: str = "",
        *,
        transport: Transport = LOCAL_PLAINTEXT,
        retry: RetryPolicy = UNTIL_THE_DEADLINE,
        deadline_s: float = DEADLINE_S,
        generate_deadline_s: float = GENERATE_DEADLINE_S,
        traceparent: Callable[[], str] = active_traceparent,
        on_retry: OnRetry | None = None,
        gevent: bool = False,
    ) -> None:
        """Connects with the first call.

        Args:
            router: gRPC target of the router, e.g. "127.0.0.1:50051" or "dns:///router.internal:443".
            feedback_collector: gRPC target of the feedback collector; needed for `feedback` only.
            transport: TLS, plaintext to other machines, limits.
            retry: when and how often a failed call is repeated; `RetryPolicy(retries=0)` never.
            deadline_s: of a call that names none, its retries included.
            generate_deadline_s: the same for `generate`, from the first read to the last piece.
            traceparent: gives the W3C trace context to send along, or "".
            on_retry: told before each repeat what failed, and how many seconds later the call is repeated.
            gevent: True in a process that has called `grpc.experimental.gevent.init_gevent`. Blocking calls would each hold a thread of
                gevent's small pool there.
        Raises:
            ValueError: a target is on another machine, and `transport` has neither credentials nor plaintext.
        """
        self._router, self._collector = router, feedback_collector
        self._retry, self._deadline_s, self._generate_deadline_s = retry, deadline_s, generate_deadline_s
        self._traceparent, self._on_retry = traceparent, on_retry
        self._is_closed = False
        for target in filter(None, (router, feedback_collector)):
            transport.check(target)
        channels = self._channels = [transport.open(target) for target in (router, feedback_collector) if target]
        stub = router_grpc.RouterServiceStub(channels[0])  # type: ignore[no-untyped-call] # generated
        self._recommend, self._generate = _unary(stub.Recommend, gevent), stub.Generate
        self._submit: Call | None = None
        if feedback_collector:
            collector = collector_grpc.FeedbackCollectorServiceStub(channels[1])  # type: ignore[no-untyped-call] # generated
            self._submit = _unary(collector.SubmitFeedback, gevent)

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections; calls that are under way end with `Cancelled`, and so does every later one."""
        self._is_closed = True
        for channel in self._channels:
            channel.close()

    def recommend(
        self,
        user_id: Id,
        candidates: Iterable[Id] = (),
        limit: int = 0,
        *,
        context: Attributes = NONE,
        profile: Attributes = NONE,
        idempotency_key: str = "",
        deadline_s: float | None = None,
    ) -> Recommendation:
        """Return items for a user, best first.

        Args:
            user_id: a text of 1 to 128 bytes, or a whole number: 1, 1.0 and "1" are one user. An unknown one is welcome.
            candidates: item ids to rank, none twice; the answer names "1.0" as "1". Empty: the mesh finds items itself.
            limit: most items to return; 0: all candidates, or 20 when none are given.
            context: what is known of this request alone, e.g. {"page": "home", "hour": 21}: texts, numbers, true or false, lists.
            profile: the user's attributes, where you keep profiles yourself; they stand in place of those of profiles.v1.
            idempotency_key: minted when empty. Pass the one of a failed call (`error.idempotency_key`) to continue that call.
            deadline_s: seconds for the call, retries included.
        Raises:
            InvalidRequest: an id is empty, too long or named twice, or there are too many, or an attribute breaks the limits
                (`tunemesh_client.attributes`). A retry does not help.
            Unavailable, Overloaded, DeadlineExceeded: no answer in time, retries included. A retry helps.
        """
        request = recommend_request(user_id, candidates, limit, idempotency_key, context=context, profile=profile)
        what = f"Recommend at {self._router}"
        response, attempts, latency_s = self._call(self._recommend, request, what, request.idempotency_key, deadline_s)
        return recommendation_of(response, attempts, latency_s)

    def generate(
        self,
        user_id: Id,
        question: str,
        *,
        task: str = "",
        history: Iterable[Turn] = (),
        context: Iterable[Passage] = (),
        retrieve: bool = False,
        retrieval_source: str = "",
        sampling: Sampling = GREEDY,
        adapter: str = "",
        deadline_s: float | None = None,
    ) -> AnswerStream:
        """Return the answer as an iterator of pieces of text, which come as the model writes them. Nothing is sent before the first read.

        Args:
            user_id: as in `recommend`.
            question: 1 to 8192 bytes.
            task: whose template and adapter answer; empty: "answer".
            history: earlier turns, oldest first; at most 32.
            context: passages to answer from; when there are any, nothing is retrieved. At most 32.
            retrieve: True: the mesh looks for passages.
            retrieval_source: only passages of this source ("catalog", "files"); empty: all.
            sampling: temperature, length and the like.
            adapter: for evaluation: this adapter answers ("base" for none) in place of the task's live one.
            deadline_s: seconds from the first read to the last piece.
        """
        request = generate_request(
            user_id,
            question,
            task=task,
            history=history,
            context=context,
            retrieve=retrieve,
            retrieval_source=retrieval_source,
            sampling=sampling,
            adapter=adapter,
        )
        what, timeout_s = f"Generate at {self._router}", self._generate_deadline_s if deadline_s is None else deadline_s

        def start(attempt_s: float) -> Any:
            self._check_open(what)
            return self._generate(request, timeout=attempt_s, metadata=self._metadata())

        return AnswerStream(start, what, self._retry, timeout_s, self._on_retry)

    def feedback(self, feedback: Feedback, *, deadline_s: float | None = None) -> Receipt:
        """Report what a user did; return once the mesh's broker has it.

        Raises:
            InvalidRequest: `details` names the field, or this client has no feedback collector. A retry does not help.
            Unavailable, Overloaded, DeadlineExceeded: not acknowledged in time. A retry with the same object helps.
        """
        return self.feedback_many([feedback], deadline_s=deadline_s)[0]

    def feedback_many(self, feedback: Sequence[Feedback], *, deadline_s: float | None = None) -> list[Receipt]:
        """Report 1 to 100 acts in one call; return one receipt each, in order. Errors: as `feedback`; nothing is accepted in part."""
        what = f"SubmitFeedback at {self._collector or 'no address'}"
        if self._submit is None:
            raise InvalidRequest("this client was made without the address of a feedback collector", request=what)
        response, attempts, _ = self._call(self._submit, feedback_request(feedback), what, "", deadline_s)
        receipts = receipts_of(response)
        if len(receipts) != len(feedback):
            raise Internal(f"{len(receipts)} receipts came for {len(feedback)} feedback", "OK", what, attempts)
        return receipts

    def _call(self, method: Call, request: Any, what: str, key: str, deadline_s: float | None) -> tuple[Any, int, float]:
        """Return the response, the number of attempts and the seconds that the last one took."""
        now_s = time.monotonic()
        attempts = Attempts(self._retry, self._deadline_s if deadline_s is None else deadline_s, now_s)
        while True:
            self._check_open(what)
            try:
                response = method(request, timeout=attempts.begin(now_s), metadata=self._metadata())
                return response, attempts.number, time.monotonic() - now_s
            except grpc.FutureCancelledError as error:
                raise Cancelled("the client was closed meanwhile", "CANCELLED", what, attempts.number, key) from error
            except grpc.RpcError as error:
                failure = error_of(error, what, attempts.number, key)
                if not _pause(attempts, failure, self._on_retry):
                    raise failure from error
            now_s = time.monotonic()

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise Cancelled("the client is closed", "CANCELLED", what)

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        traceparent = self._traceparent()
        return (("traceparent", traceparent),) if traceparent else None


class AnswerStream(AnswerState):
    """Iterates over the pieces of an answer's text; afterwards, and as far as known before, it has the metadata.

    A failure before the first piece of text is repeated like any call. Later ones are raised: what was read stays in `text`, and the
    question can be asked again from the start. Leave early with `close`, or use `with`: that stops the model.
    """

    __slots__ = ("_attempts", "_call", "_is_open", "_on_retry", "_policy", "_request", "_start", "_timeout_s")

    def __init__(
        self, start: Callable[[float], Any], request: str, policy: RetryPolicy, timeout_s: float, on_retry: OnRetry | None
    ) -> None:
        """Made by `Client.generate`. `start(seconds)` begins a call."""
        super().__init__()
        self._start, self._request, self._policy = start, request, policy
        self._timeout_s, self._on_retry = timeout_s, on_retry
        self._attempts: Attempts | None = None
        self._call: Any = None
        self._is_open = True

    def __iter__(self) -> Iterator[str]:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next piece of text, never empty. Errors: those of `Client.recommend`, NotFound for an adapter that is not loaded."""
        while self._is_open:
            try:
                text = self._take(self._next_message())
            except StopIteration:
                if self.finish_reason:
                    break
                self._recover(self._incomplete(self._request))
            except grpc.RpcError as error:
                self._recover(error_of(error, self._request, self.attempts))
            else:
                if text:
                    return text
        self._is_open = False
        raise StopIteration

    def __enter__(self) -> AnswerStream:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def read(self) -> Answer:
        """Read to the end and return the whole answer."""
        for _ in self:
            pass
        return self.answer()

    def close(self) -> None:
        """Stop here: the call is cancelled, and the model stops. Does nothing after the end."""
        self._is_open = False
        if self._call is not None:
            self._call.cancel()

    def _next_message(self) -> router_pb2.GenerateResponse:
        if self._call is None:
            now_s = time.monotonic()
            if self._attempts is None:
                self._attempts = Attempts(self._policy, self._timeout_s, now_s)
            self._call = self._start(self._attempts.begin(now_s))
            self.attempts = self._attempts.number
        message: router_pb2.GenerateResponse = next(self._call)
        return message

    def _recover(self, failure: TunemeshError) -> None:
        """Prepare another attempt, or raise. After `close` there is nothing to recover."""
        if not self._is_open:
            return
        assert self._attempts is not None
        if self._pieces or not _pause(self._attempts, failure, self._on_retry):
            self._is_open = False
            raise failure
        self._call = None
        self._reset()


def _pause(attempts: Attempts, failure: TunemeshError, on_retry: OnRetry | None) -> bool:
    """Wait before the next attempt and return True, or return False when there is none."""
    pause_s = attempts.pause_s(failure, time.monotonic(), random.uniform)
    if pause_s is None:
        return False
    if on_retry is not None:
        on_retry(failure, pause_s)
    time.sleep(pause_s)
    return True


def _unary(method: Any, gevent: bool) -> Call:
    if not gevent:
        return method  # type: ignore[no-any-return] # the generated stubs are untyped

    def call(request: Any, **options: Any) -> Any:
        return method.future(request, **options).result()

    return call
