"""Runs a Faust app inside a process of the mesh: its settings, its start, and an end that is never silent.

Faust is given no tables, no web server and no topics to create: states are rebuilt from the logs or kept in Redis. Two things about
Faust 0.15 that the streams rely on, both from its source:

- acknowledging records out of order may commit past an unacknowledged one while the group has no committed offset yet
  (`Consumer._new_offset`). So the streams acknowledge in the order of offsets only.
- only Faust's own assignor gives equal partitions of all topics to one worker; it is used when `table_standby_replicas` > 0
  (`AIOKafkaConsumerThread._create_worker_consumer`).

Knows no topic and no event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import faust
from aiokafka.errors import InvalidSessionTimeoutError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport

from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.platform.kafka_async_batches import read_through_readable_batches
from services.common.platform.kafka_batches import AIOKAFKA_PACKAGES
from services.common.platform.kafka_compression import Compression, compression_type

_POLL_S = 0.2
_RETRY_S = 1.0
_COMMIT_INTERVAL_S = 1.0
# The embedded broker answers after half of it. Each of its fetches and ListOffsets walks all batches of the partition (7 ms at 8,000),
# so a shorter wait costs it more, the longer it runs.
_FETCH_WAIT_MS = 200
# Collects a tenth of a second of records into one answer when few come, and costs nothing when many do.
_FETCH_MIN_BYTES = 65_536
# A stream that waits on purpose reads nothing, for hours if it must. aiokafka would take it for dead after `max_poll_interval` and leave
# the group: for good, since it joins again only after a read, and Faust reads only what is assigned. Whether it is alive is told by
# its heartbeats and its health service.
_MAX_POLL_INTERVAL_S = 7 * 86_400.0

_log = logging.getLogger(__name__)


class StreamFailed(Exception):
    """The stream cannot go on. A new process starts again from the committed offsets."""


class _ConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc, unused-ignore] # Faust's types are not read
    def _create_worker_consumer(self, transport: Any) -> Any:
        """Faust fixes 1500 ms, and the embedded broker (Tansu 0.6) answers a waiting fetch only after half of it, new records or not."""
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS
        consumer._fetch_min_bytes = _FETCH_MIN_BYTES
        return consumer


class _Consumer(Consumer):  # type: ignore[misc, unused-ignore]
    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):  # type: ignore[misc, unused-ignore]
    Consumer = _Consumer


class _App(faust.App):  # type: ignore[misc, unused-ignore]
    def _create_directories(self) -> None:
        """No tables, so no folder for them (Faust would make one in the working directory)."""

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


def new_app(
    app_id: str,
    *,
    bootstrap_servers: str,
    worker_id: str,
    session_timeout_ms: int,
    buffer_records: int = 4_096,
    compression: Compression = "none",
) -> Any:
    """Return a Faust app that is part of the consumer group `app_id`.

    Args:
        app_id: the group; it holds the committed offsets.
        bootstrap_servers: comma-separated host:port list.
        worker_id: static membership: a worker that comes back under its old name gets its partitions without waiting for the old one
            to time out.
        session_timeout_ms: a silent worker loses its partitions after it.
        buffer_records: about as many are read ahead, per topic, of what the agents have taken.
        compression: of what the app itself writes.
    Raises:
        ConfigurationError: the compression's package is not installed.
    """
    for name in ("faust", "mode", "aiokafka", __name__):  # Faust's services log under the module of their class
        logging.getLogger(name).setLevel(logging.WARNING)
    read_through_readable_batches()
    session_s = session_timeout_ms / 1e3
    return _App(
        app_id,
        broker=[f"aiokafka://{server}" for server in bootstrap_servers.split(",")],
        autodiscover=False,
        broker_commit_interval=_COMMIT_INTERVAL_S,
        broker_heartbeat_interval=session_s / 4,
        broker_max_poll_interval=_MAX_POLL_INTERVAL_S,
        broker_max_poll_records=min(1_000, buffer_records),
        broker_request_timeout=max(90.0, session_s + 30.0),  # Faust refuses a session longer than it
        broker_session_timeout=session_s,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=f"{app_id}-{worker_id}",
        key_serializer="raw",
        producer_compression_type=compression_type(compression, AIOKAFKA_PACKAGES),
        store="memory://",
        stream_buffer_maxsize=buffer_records,
        stream_wait_empty=False,  # records stay unacknowledged on purpose
        table_standby_replicas=1,
        topic_allow_declare=False,
        topic_disable_leader=True,
        value_serializer="raw",
        web_enabled=False,
    )


def raw_topic(app: Any, name: str) -> Any:
    """Return a topic of the app whose keys and values are bytes."""
    return app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")


def fatal(app: Any, agent: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Wrap an agent so that its failure ends the process.

    Faust would start the agent again behind the record that it failed on, which loses the record.
    """

    async def guarded(stream: Any) -> None:
        try:
            await agent(stream)
        except Exception as error:
            await app.crash(error)
            raise

    return guarded


def crash_on_failure(app: Any) -> Callable[[asyncio.Task[Any]], None]:
    """Return a done-callback for tasks whose failure ends the process."""

    def check(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)
            app.loop.create_task(app.crash(error))

    return check


def known_end(app: Any, ends: Mapping[tuple[str, int], int], topic: str, partition: int) -> int | None:
    """Return the end of a partition: the larger of what the broker says now (`ends`, of LogReader.ends) and what the last fetch said.

    The first alone can be too little (LogReader.ends). None: the broker did not say.
    """
    end = ends.get((topic, partition))
    if end is None:
        return None
    at = next((tp for tp in app.consumer.assignment() if (tp.topic, tp.partition) == (topic, partition)), None)
    fetched = app.consumer.highwater(at) if at is not None else None
    return max(end, fetched or 0)


def check_membership(app: Any) -> None:
    """Raise what keeps this worker out of its group for good; Faust never asks aiokafka for it, and would wait for partitions for ever.

    aiokafka keeps such an error until a caller of `getmany` meets it (`GroupCoordinator.check_errors`), and Faust reads past that method.
    It belongs to the consumer's thread, hence only looked at.

    Raises:
        ConfigurationError: the broker does not take the session's length.
        StreamFailed: any other refusal, e.g. for want of a right to the group, or since its members share out partitions another way.
    """
    consumer = getattr(getattr(app.consumer, "_thread", None), "_consumer", None)
    coordinator = getattr(consumer, "_coordinator", None)
    error = getattr(coordinator, "_pending_exception", None)
    if isinstance(error, InvalidSessionTimeoutError):
        asked_ms = round(app.conf.broker_session_timeout * 1e3)
        raise ConfigurationError(
            f"the broker takes no session of {asked_ms} ms in group {app.conf.id}: set SESSION_TIMEOUT_MS of this stream between its "
            "group.min.session.timeout.ms and group.max.session.timeout.ms (6000 and 1800000 unless changed)"
        ) from error
    if error is not None:
        raise StreamFailed(f"the broker keeps this worker out of group {app.conf.id}: {error}") from error


async def run_until_failure(app: Any, *background: asyncio.Task[None]) -> None:
    """Start the app and return only by an exception: the app's crash, or the end of a background task. Cancel it to stop.

    Raises:
        ConfigurationError: the broker does not take the session's length.
        StreamFailed: with the cause.
    """
    # The start ends with the first assignment only, which a worker that is kept out never gets.
    starting = asyncio.create_task(app.start(), name="the start of the stream app")
    try:
        while True:
            check_membership(app)
            if app.should_stop:
                raise StreamFailed(f"the stream app stopped: {app.crash_reason!r}") from app.crash_reason
            for task in background:
                if task.done():
                    raise _ended(task)
            if starting.done() and (starting.cancelled() or starting.exception() is not None):
                raise _ended(starting)
            await asyncio.sleep(_POLL_S)
    finally:
        starting.cancel()


def _ended(task: asyncio.Task[Any]) -> StreamFailed:
    cause = None if task.cancelled() else task.exception()
    failure = StreamFailed(f"{task.get_name()} ended: {cause!r}")
    failure.__cause__ = cause
    return failure


async def when_available(what: str, attempt: Callable[[], Awaitable[None]], *, timeout_s: float = 60.0) -> None:
    """Repeat `attempt` while it raises Unavailable, for at most `timeout_s`; `what` is for the log.

    Raises:
        Unavailable: as the last attempt did.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            await attempt()
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            _log.warning("waiting for %s: %s", what, error)
            await asyncio.sleep(_RETRY_S)
        else:
            return
