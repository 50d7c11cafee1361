"""The blocking event producer without a broker: whose deadline ends which wait."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import kafka.errors
import pytest

from tunemesh_client import Feedback, RetryPolicy
from tunemesh_client.errors import DeadlineExceeded
from tunemesh_client.event_producer import EventProducer


def test_threads_that_find_no_broker_keep_each_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: EventProducer, timeout_s: float) -> None:
        time.sleep(timeout_s)
        raise kafka.errors.KafkaTimeoutError("no broker")

    monkeypatch.setattr(EventProducer, "_connect", connect)
    producer = EventProducer("127.0.0.1:1", retry=RetryPolicy(retries=0))

    def took_s(_: int) -> float:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            producer.send(Feedback("r", "u", "rating", item_id="i", value=4.0), deadline_s=0.5)
        return time.monotonic() - started

    with ThreadPoolExecutor(16) as pool:
        took = list(pool.map(took_s, range(16)))
    # One after the other the last of them would wait for 8 s.
    assert max(took) < 8 * min(took)
