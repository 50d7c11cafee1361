import time
import uuid
from collections.abc import Iterator

import pytest
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import MALFORMED
from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.envelope import parse_value
from services.common.events.topics import CATALOG
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.topic_follower import TopicFollower
from services.mesh.runner.topics import create_topics
from services.recommender.catalog import ItemIndex
from tests.limits import seconds

pytestmark = pytest.mark.integration


@pytest.fixture
def topic(topics) -> str:
    return topics("catalog")


@pytest.fixture
def producer(kafka_bootstrap):
    producer = durable_producer(kafka_bootstrap, client_id="test")
    yield producer
    producer.close()


@pytest.fixture
def followed(kafka_bootstrap, topic) -> Iterator[tuple[ItemIndex, TopicFollower]]:
    index = ItemIndex(10)
    follower = TopicFollower(kafka_bootstrap, topic, index, client_id="test")
    yield index, follower
    follower.stop()


def send(producer, topic: str, item_id: str, *categories: str) -> None:
    message = catalog_item_pb2.CatalogItem(item_id=item_id, categories=categories)
    producer.send(topic, key=item_id.encode(), value=message.SerializeToString()).get(seconds(10))


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + seconds(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def test_the_follower_is_ready_after_the_whole_topic_and_follows_what_comes_later(producer, topic, followed):
    index, follower = followed
    for number in range(50):
        send(producer, topic, str(number), "Drama")
    assert not index.is_ready
    follower.start()
    assert follower.wait_ready(20.0)
    assert index.is_ready and len(index) == 50
    send(producer, topic, "50", "War")
    producer.send(topic, key=b"0", value=None).get(seconds(10))
    wait_for(lambda: index.categories("50") == ("War",) and len(index) == 50)


def test_an_empty_topic_is_ready_at_once(followed):
    index, follower = followed
    follower.start()
    assert follower.wait_ready(20.0) and len(index) == 0


def test_a_topic_that_does_not_exist_yet_is_waited_for(kafka_bootstrap, producer):
    index, topic = ItemIndex(10), f"catalog.{uuid.uuid4().hex}"
    follower = TopicFollower(kafka_bootstrap, topic, index, client_id="test")
    follower.start()
    assert not follower.wait_ready(0.5) and not index.is_ready
    create_topics(kafka_bootstrap, {topic: 1})
    send(producer, topic, "1", "Drama")
    wait_for(lambda: index.categories("1") == ("Drama",), timeout_s=20.0)
    follower.stop(timeout_s=10.0)


def test_unusable_records_are_in_the_dead_letters_once_however_often_the_process_starts(fresh_broker, mesh_topics):
    """catalog.v1.dlq.v1 was never written."""
    mesh_topics(fresh_broker.bootstrap)
    producer = durable_producer(fresh_broker.bootstrap, client_id="test")
    for number in range(10):
        producer.send(CATALOG.name, key=b"%d" % number, value=b'{"name": "no field of an item"}').get(seconds(10))
        send(producer, CATALOG.name, f"item-{number}", "Drama")
    producer.close()

    def life() -> None:
        letters = dead_letter_writer(fresh_broker.bootstrap, CATALOG, source="/test")
        follower = TopicFollower(fresh_broker.bootstrap, CATALOG.name, ItemIndex(10, on_refused=letters.set_aside), client_id="test")
        follower.start()
        assert follower.wait_ready(seconds(20))
        follower.stop()
        letters.close(seconds(20))

    def written() -> list[DeadLetter]:
        consumer = assigned_consumer(fresh_broker.bootstrap, CATALOG.dlq, start="beginning", client_id="test")
        records = drain_to_end(consumer)
        consumer.close()
        return [parse_value(record.value, record.headers, DeadLetter) for record in records]

    life()
    assert [(each.source_topic, each.source_partition, each.source_offset, each.key) for each in written()] == [
        (CATALOG.name, 0, 2 * number, b"%d" % number) for number in range(10)
    ]
    assert {each.reason for each in written()} == {MALFORMED}
    assert all("it has none of item_id" in each.detail for each in written())
    life()
    assert len(written()) == 10
