"""Writes feedback, and profiles of users, straight to Kafka; needs the extra: `pip install 'tunemesh-client[kafka]'`.

Both producers wait until all in-sync replicas have a record, and choose its partition by murmur2 of the key, as Java's client does. They
are not idempotent on Kafka's level: an idempotent producer whose broker died may never send again, and to the mesh a record that was
written twice is one act, since its feedback_id is the same, or the same profile.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar

from tunemesh_client.client import DEADLINE_S, OnRetry
from tunemesh_client.errors import AccessDenied, Cancelled, DeadlineExceeded, InvalidRequest, TunemeshError, Unavailable
from tunemesh_client.events import TOPIC, Record, Written, check, record_of
from tunemesh_client.ids import Id
from tunemesh_client.messages import Feedback
from tunemesh_client.profiles import PROFILES_TOPIC, DeletedProfile, Profile
from tunemesh_client.profiles import record_of as record_of_profile
from tunemesh_client.retry import UNTIL_THE_DEADLINE, Attempts, RetryPolicy
from tunemesh_client.tracing import active_traceparent

# The library gives up a record after this time; a call that has more left tries again.
_DELIVERY_TIMEOUT_MS = 5_000
# Both libraries fail a record after its delivery timeout, but may wait longer for a broker that has stopped answering altogether.
_ATTEMPT_TIMEOUT_S = 3 * _DELIVERY_TIMEOUT_MS / 1e3
_REQUEST_TIMEOUT_MS = 4_000
# How long a blocking send may look for the topic before the deadline is looked at again.
_MAX_BLOCK_MS = 500
_RECONNECT_MS = 1_000

# By name: both libraries call them the same, and neither need be installed to read this table. What is absent is Unavailable.
_CLASS_OF: Mapping[str, type[TunemeshError]] = {
    "KafkaTimeoutError": DeadlineExceeded,
    "TimeoutError": DeadlineExceeded,
    "MessageSizeTooLargeError": InvalidRequest,
    "InvalidTopicError": InvalidRequest,
    "TopicAuthorizationFailedError": AccessDenied,
    "ClusterAuthorizationFailedError": AccessDenied,
    "SaslAuthenticationFailedError": AccessDenied,
    "AuthenticationFailedError": AccessDenied,
}


class _Producer:
    """What both producers know: where to, as whom, and how to make records and errors."""

    _LIBRARY: ClassVar[str]
    _DISTRIBUTION: ClassVar[str]
    _LOCK: ClassVar[Any]
    """What makes the lock around connecting: of threads or of the event loop."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        source: str = "/tunemesh_client",
        topic: str = TOPIC,
        profiles_topic: str = PROFILES_TOPIC,
        client_id: str = "tunemesh-client",
        retry: RetryPolicy = UNTIL_THE_DEADLINE,
        deadline_s: float = DEADLINE_S,
        traceparent: Callable[[], str] = active_traceparent,
        on_retry: OnRetry | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Connects with the first send.

        Args:
            bootstrap_servers: comma-separated host:port list.
            source: `ce_source` of each event: who writes, e.g. "/shop/web".
            topic: of feedback.
            profiles_topic: of profiles.
            client_id: shown in the broker's log.
            retry: when and how often a failed send is repeated; `RetryPolicy(retries=0)` never.
            deadline_s: of a send that names none, its retries included.
            traceparent: gives the W3C trace context that goes into the headers, or "".
            on_retry: told before each repeat what failed, and how many seconds later the send is repeated.
            options: further settings of the Kafka library, e.g. `security_protocol`, `ssl_context`, `sasl_mechanism`.
        Raises:
            ImportError: the Kafka library is not installed.
        """
        self._bootstrap, self._source, self._topic, self._client_id = bootstrap_servers, source, topic, client_id
        self._retry, self._deadline_s, self._traceparent, self._on_retry = retry, deadline_s, traceparent, on_retry
        self._profiles_topic, self._options = profiles_topic, dict(options or {})
        self._is_closed = False
        try:
            self._library: Any = importlib.import_module(self._LIBRARY)
        except ImportError as error:
            raise ImportError(f"{type(self).__name__} needs {self._DISTRIBUTION}: pip install 'tunemesh-client[kafka]'") from error
        self._connecting: Any = self._LOCK()
        self._producer: Any = None

    def _records(self, feedback: Sequence[Feedback]) -> list[Record]:
        for each in feedback:
            check(each)
        now_ms, traceparent = time.time_ns() // 1_000_000, self._traceparent()
        return [record_of(each, source=self._source, accepted_at_ms=now_ms, traceparent=traceparent) for each in feedback]

    def _profile_records(self, given: Sequence[Profile | DeletedProfile]) -> list[Record]:
        now_ms, traceparent = time.time_ns() // 1_000_000, self._traceparent()
        return [record_of_profile(each, source=self._source, written_at_ms=now_ms, traceparent=traceparent) for each in given]

    def _attempts(self, deadline_s: float | None) -> Attempts:
        return Attempts(self._retry, self._deadline_s if deadline_s is None else deadline_s, time.monotonic())

    def _failure(self, error: Exception, topic: str, attempts: int) -> TunemeshError:
        name = type(error).__name__
        details = str(error).removeprefix(name).removeprefix(": ") or "nothing was acknowledged in time"
        return _CLASS_OF.get(name, Unavailable)(details, name, f"{topic} at {self._bootstrap}", attempts)

    def _pause_s(self, attempts: Attempts, failure: TunemeshError) -> float | None:
        pause_s = attempts.pause_s(failure, time.monotonic(), random.uniform)
        if pause_s is not None and self._on_retry is not None:
            self._on_retry(failure, pause_s)
        return pause_s

    def _check_open(self) -> None:
        if self._is_closed:
            raise Cancelled("the producer is closed", "CLOSED", f"Kafka at {self._bootstrap}")


def _written(record: Record, placed: Any) -> Written:
    return Written(record.event_id, record.written_at_ms, placed.partition, placed.offset)


class EventProducer(_Producer):
    """Writes feedback and profiles, blocking, with kafka-python. Thread-safe. Close it, or use `with`."""

    _LIBRARY, _DISTRIBUTION, _LOCK = "kafka", "kafka-python", threading.Lock

    def __enter__(self) -> EventProducer:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Wait for what is under way, some seconds at most, and disconnect. Every send that returned was acknowledged."""
        with self._connecting:
            self._is_closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=2 * _DELIVERY_TIMEOUT_MS / 1e3)

    def send(self, feedback: Feedback, *, deadline_s: float | None = None) -> Written:
        """Write one; return once the broker has acknowledged it.

        Raises:
            InvalidRequest: `details` names the field. A retry does not help.
            Unavailable, DeadlineExceeded: not acknowledged in time; it may be written all the same. A retry with the same object helps.
        """
        return self.send_many([feedback], deadline_s=deadline_s)[0]

    def send_many(self, feedback: Sequence[Feedback], *, deadline_s: float | None = None) -> list[Written]:
        """Write several; return once the broker has acknowledged all. After an error some may be written: send all of them again."""
        return self._send(self._topic, self._records(feedback), deadline_s)

    def put_profile(self, profile: Profile, *, deadline_s: float | None = None) -> None:
        """Write a user's whole profile, in place of the one before; return once the broker has acknowledged it. Errors: those of `send`."""
        self.put_profiles([profile], deadline_s=deadline_s)

    def put_profiles(self, profiles: Sequence[Profile], *, deadline_s: float | None = None) -> None:
        """Write several; return once the broker has acknowledged all. After an error some may be written: write all of them again."""
        self._send(self._profiles_topic, self._profile_records(profiles), deadline_s)

    def delete_profile(self, user_id: Id, *, deadline_s: float | None = None) -> None:
        """Delete what is known of a user; return once the broker has acknowledged it. Errors: those of `send`."""
        self._send(self._profiles_topic, self._profile_records([DeletedProfile(user_id)]), deadline_s)

    def _send(self, topic: str, records: Sequence[Record], deadline_s: float | None) -> list[Written]:
        self._check_open()
        written = dict[int, Written]()
        attempts = self._attempts(deadline_s)
        while True:
            timeout_s = min(attempts.begin(time.monotonic()), _ATTEMPT_TIMEOUT_S)
            try:
                self._write(topic, records, written, time.monotonic() + timeout_s)
                return [written[index] for index in range(len(records))]
            except self._library.errors.KafkaError as error:
                failure = self._failure(error, topic, attempts.number)
                pause_s = self._pause_s(attempts, failure)
                if pause_s is None:
                    raise failure from error
            time.sleep(pause_s)
            self._check_open()

    def _write(self, topic: str, records: Sequence[Record], written: dict[int, Written], deadline_s: float) -> None:
        """Write those without an entry in `written`, and make the entries. Raises KafkaError for the first that failed."""
        producer = self._connected(deadline_s)
        futures = {
            index: producer.send(topic, key=record.key, value=record.value, headers=record.headers)
            for index, record in enumerate(records)
            if index not in written
        }
        failure: Exception | None = None
        for index, future in futures.items():
            try:
                placed = future.get(timeout=max(deadline_s - time.monotonic(), 0.001))
            except self._library.errors.KafkaError as error:
                failure = failure or error
            else:
                written[index] = _written(records[index], placed)
        if failure is not None:
            raise failure

    def _connected(self, deadline_s: float) -> Any:
        # Several threads that find no broker wait side by side, each as long as it may.
        if not self._connecting.acquire(timeout=max(deadline_s - time.monotonic(), 0.001)):
            raise self._library.errors.KafkaTimeoutError("another thread is still looking for the broker")
        try:
            self._check_open()
            if self._producer is None:
                self._producer = self._connect(max(deadline_s - time.monotonic(), 0.001))
            return self._producer
        finally:
            self._connecting.release()

    def _connect(self, timeout_s: float) -> Any:
        """Return a connected producer. When kafka-python's constructor fails (3.0.12), its sockets stay open: they are closed here."""
        clients: list[Any] = []

        def client(**arguments: Any) -> Any:
            clients.append(self._library.KafkaProducer.DEFAULT_CONFIG["kafka_client"](**arguments))
            return clients[-1]

        config: dict[str, Any] = {
            "acks": "all",
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,  # keeps a user's acts in order when a request is repeated
            "allow_auto_create_topics": False,
            "delivery_timeout_ms": _DELIVERY_TIMEOUT_MS,
            "request_timeout_ms": _REQUEST_TIMEOUT_MS,
            "max_block_ms": _MAX_BLOCK_MS,
            "reconnect_backoff_max_ms": _RECONNECT_MS,
            "bootstrap_timeout_ms": max(int(timeout_s * 1e3), 1),
            "metrics_enabled": False,
            **self._options,
        }
        try:
            return self._library.KafkaProducer(
                bootstrap_servers=self._bootstrap.split(","), client_id=self._client_id, kafka_client=client, **config
            )
        except BaseException:
            for leftover in clients:
                leftover.close()
            raise


class AsyncEventProducer(_Producer):
    """Writes feedback and profiles with aiokafka. For one event loop: the one of its first send. Close it, or use `async with`."""

    _LIBRARY, _DISTRIBUTION, _LOCK = "aiokafka", "aiokafka", asyncio.Lock

    async def __aenter__(self) -> AsyncEventProducer:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Wait for what is under way, some seconds at most, and disconnect. Every send that returned was acknowledged."""
        async with self._connecting:
            self._is_closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def connect(self, *, deadline_s: float | None = None) -> None:
        """Connect now; a send does it by itself. Raises Unavailable or DeadlineExceeded when there is no broker. A retry helps."""
        await self._repeated(self._topic, self._connected, self._attempts(deadline_s))

    async def send(self, feedback: Feedback, *, deadline_s: float | None = None) -> Written:
        """Write one; return once the broker has acknowledged it. Errors: those of `EventProducer.send`."""
        return (await self.send_many([feedback], deadline_s=deadline_s))[0]

    async def send_many(self, feedback: Sequence[Feedback], *, deadline_s: float | None = None) -> list[Written]:
        """Write several; return once the broker has acknowledged all. After an error some may be written: send all of them again."""
        return await self._send(self._topic, self._records(feedback), deadline_s)

    async def put_profile(self, profile: Profile, *, deadline_s: float | None = None) -> None:
        """Write a user's whole profile, in place of the one before; return once the broker has acknowledged it. Errors: those of `send`."""
        await self.put_profiles([profile], deadline_s=deadline_s)

    async def put_profiles(self, profiles: Sequence[Profile], *, deadline_s: float | None = None) -> None:
        """Write several; return once the broker has acknowledged all. After an error some may be written: write all of them again."""
        await self._send(self._profiles_topic, self._profile_records(profiles), deadline_s)

    async def delete_profile(self, user_id: Id, *, deadline_s: float | None = None) -> None:
        """Delete what is known of a user; return once the broker has acknowledged it. Errors: those of `send`."""
        await self._send(self._profiles_topic, self._profile_records([DeletedProfile(user_id)]), deadline_s)

    async def _send(self, topic: str, records: Sequence[Record], deadline_s: float | None) -> list[Written]:
        written = dict[int, Written]()
        await self._repeated(topic, lambda: self._write(topic, records, written), self._attempts(deadline_s))
        return [written[index] for index in range(len(records))]

    async def _repeated(self, topic: str, attempt: Callable[[], Awaitable[object]], attempts: Attempts) -> None:
        """Await `attempt()` until it succeeds, or raise what it fails with in the end."""
        while True:
            self._check_open()
            try:
                async with asyncio.timeout(min(attempts.begin(time.monotonic()), _ATTEMPT_TIMEOUT_S)):
                    await attempt()
                return
            except (self._library.errors.KafkaError, TimeoutError) as error:
                failure = self._failure(error, topic, attempts.number)
                pause_s = self._pause_s(attempts, failure)
                if pause_s is None:
                    raise failure from error
            await asyncio.sleep(pause_s)

    async def _write(self, topic: str, records: Sequence[Record], written: dict[int, Written]) -> None:
        """Write those without an entry in `written`, and make the entries. Raises KafkaError for the first that failed."""
        producer = await self._connected()
        futures = {
            index: await producer.send(topic, key=record.key, value=record.value, headers=record.headers)
            for index, record in enumerate(records)
            if index not in written
        }
        failure: Exception | None = None
        for index, future in futures.items():
            try:
                placed = await future
            except self._library.errors.KafkaError as error:
                failure = failure or error
            else:
                written[index] = _written(records[index], placed)
        if failure is not None:
            raise failure

    async def _connected(self) -> Any:
        async with self._connecting:
            self._check_open()
            if self._producer is None:
                self._producer = await self._connect()
            return self._producer

    async def _connect(self) -> Any:
        config = {"acks": "all", "enable_idempotence": False, "request_timeout_ms": _DELIVERY_TIMEOUT_MS, **self._options}
        producer = self._library.AIOKafkaProducer(bootstrap_servers=self._bootstrap, client_id=self._client_id, **config)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer
