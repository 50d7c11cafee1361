"""A thread that follows a small topic into memory: all of it once, then what is appended. For compacted topics such as catalog.v1.

Imports in both environments. Knows no topic and no message type; what the records mean is its reader's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from kafka.errors import KafkaError

from services.common.platform.errors import Unavailable
from services.common.platform.kafka import assigned_consumer, drain_to_end

_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class Record(Protocol):
    """What a reader may use of a Kafka record."""

    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes]] | None: ...  # noqa: D102
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102


class Reader(Protocol):
    """Takes the records in, in the follower's thread."""

    def begin(self, records: Sequence[Record]) -> None:
        """Take the whole topic as it is now: at the start, and again when the broker's log is another than before."""
        ...

    def extend(self, records: Sequence[Record]) -> None:
        """Take what was appended since, in offset order."""
        ...


class TopicFollower:
    """Keeps a reader up to date. Kafka may be down at any time: the reader then stays as it is, and the log says so."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        reader: Reader,
        *,
        client_id: str,
        fetch_wait_ms: int = 1_000,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            bootstrap_servers: comma-separated host:port list.
            topic: its name.
            reader: told of every record; its exceptions end the thread, loudly.
            client_id: shown in the broker's log.
            fetch_wait_ms: how long the broker may hold a fetch that finds too little. An idle topic costs it one request in that time;
                a single new record may be known this much later.
            on_ready: called in the thread when the whole topic was read for the first time.
        """
        self._bootstrap_servers, self._topic, self._reader, self._client_id = bootstrap_servers, topic, reader, client_id
        self._fetch_wait_ms, self._on_ready = fetch_wait_ms, on_ready
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{topic}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the whole topic has been read once."""
        return self._ready.is_set()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the whole topic was read once; return whether it was. Blocks: call it off the event loop."""
        return self._ready.wait(timeout_s)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread. Blocks: call it off the event loop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (Unavailable, KafkaError) as error:
                # An offset out of range is among these: the broker lost or trimmed its log, so the whole topic is read again.
                _log.warning("%s cannot be followed and is read again in %.0f s: %s", self._topic, _RETRY_S, error)
                self._stop.wait(_RETRY_S)
            except Exception:
                _log.exception("the reader of %s failed: what it knows stays as it is from now on", self._topic)
                raise

    def _follow(self) -> None:
        consumer = assigned_consumer(
            self._bootstrap_servers,
            self._topic,
            start="beginning",
            client_id=self._client_id,
            bootstrap_timeout_ms=5_000,
            fetch_max_wait_ms=self._fetch_wait_ms,
        )
        try:
            started = time.monotonic()
            records = drain_to_end(consumer)
            self._reader.begin(records)
            _log.info("%s: %d records read in %.1f s", self._topic, len(records), time.monotonic() - started)
            if not self._ready.is_set():
                self._ready.set()
                if self._on_ready is not None:
                    self._on_ready()
            while not self._stop.is_set():
                for batch in consumer.poll(timeout_ms=min(self._fetch_wait_ms, 200)).values():
                    self._reader.extend(batch)
        finally:
            consumer.close()
