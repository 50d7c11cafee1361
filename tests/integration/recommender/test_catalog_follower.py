import time
import uuid
from collections.abc import Iterator

import pytest
from tunemesh.catalog.v1 import catalog_item_pb2

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
