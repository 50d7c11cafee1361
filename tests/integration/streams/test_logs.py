"""What a stream asks about a broker's logs, on real brokers."""

from __future__ import annotations

import asyncio
import time

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError

from streams.logs import LogReader
from tests.limits import seconds

pytestmark = pytest.mark.integration


def _was_created(admin: KafkaAdminClient, topic: str) -> bool:
    """Brokers delete a topic some time after they say so."""
    try:
        admin.create_topics([NewTopic(topic, 2, 1)])
    except TopicAlreadyExistsError:
        return False
    return True


async def test_a_topic_that_was_made_anew_or_of_another_broker_is_another_incarnation(fresh_broker) -> None:
    admin = KafkaAdminClient(bootstrap_servers=fresh_broker.bootstrap)
    admin.create_topics([NewTopic("exposures.v1", 2, 1), NewTopic("feedback.v1", 2, 1)])
    reader = LogReader(fresh_broker.bootstrap, "test")
    first = await reader.incarnation("exposures.v1")
    assert 0 < first < 2**64 and await reader.incarnation("exposures.v1") == first
    assert await reader.incarnation("feedback.v1") != first
    admin.delete_topics(["exposures.v1"])
    deadline = time.monotonic() + seconds(20)
    while not _was_created(admin, "exposures.v1"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    admin.close()
    second = await reader.incarnation("exposures.v1")
    assert second not in (0, first)
