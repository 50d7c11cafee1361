"""The fixtures themselves: real servers, from either environment."""

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from services.common.events.topics import ALL, FEEDBACK
from services.common.platform.errors import ConfigurationError
from services.mesh.runner.topics import create_topics, mesh_topic_partitions
from tests.limits import seconds

pytestmark = pytest.mark.integration

# The wheel's Python backend knows numpy 1 only: under numpy 2 `as_numpy()` reads wrong strides and `pb.Tensor(name, array)` is empty
# (findings/triton_python_backend_numpy2.sh). Tensors therefore go in and out through DLPack, whichever of the two the environment has.
MODEL = """
import os
import numpy as np
import torch
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = torch.from_numpy(np.from_dlpack(pb.get_input_tensor_by_name(request, "X")).copy())
            y = (x + float(os.environ["OFFSET"])).numpy()
            answers.append(pb.InferenceResponse([pb.Tensor.from_dlpack("Y", y)]))
        return answers
"""
CONFIG = """
name: "adder"
backend: "python"
max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def test_a_record_goes_through_the_session_broker(kafka_bootstrap: str, topics: Callable[..., str]) -> None:
    topic = topics("probe", partitions=2)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all")
    producer.send(topic, key=b"k", value=b"v", partition=1).get(timeout=seconds(10))
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    records = [record for batch in consumer.poll(timeout_ms=5000).values() for record in batch]
    consumer.close()
    assert [(record.partition, record.key, record.value) for record in records] == [(1, b"k", b"v")]


def test_a_broker_of_ones_own_has_every_topic_of_the_table_and_forgets_them_when_killed(
    fresh_broker: Any, mesh_topics: Callable[..., None]
) -> None:
    mesh_topics(fresh_broker.bootstrap, user_partitions=3)
    consumer = KafkaConsumer(bootstrap_servers=fresh_broker.bootstrap)
    assert {topic.name for topic in ALL} <= consumer.topics()
    assert len(consumer.partitions_for_topic(FEEDBACK.name)) == 3
    consumer.close()
    if not fresh_broker.is_durable:
        fresh_broker.kill()
        fresh_broker.start()
        consumer = KafkaConsumer(bootstrap_servers=fresh_broker.bootstrap)
        assert FEEDBACK.name not in consumer.topics()
        consumer.close()


def test_creating_the_topics_twice_is_harmless_but_another_partition_count_is_an_error(fresh_broker: Any) -> None:
    first = create_topics(fresh_broker.bootstrap, mesh_topic_partitions(user_partitions=2))
    assert FEEDBACK.name in first
    assert create_topics(fresh_broker.bootstrap, mesh_topic_partitions(user_partitions=2)) == []
    with pytest.raises(ConfigurationError, match=r"has 2 partition\(s\), the mesh is configured for 4"):
        create_topics(fresh_broker.bootstrap, mesh_topic_partitions(user_partitions=4))


def test_a_durable_broker_keeps_its_topics_over_a_kill(durable_kafka: Any) -> None:
    create_topics(durable_kafka.bootstrap, {"kept": 2})
    durable_kafka.kill()
    durable_kafka.start()
    assert create_topics(durable_kafka.bootstrap, {"kept": 2}) == []


def test_redis_is_empty_at_the_start_of_a_test(redis_url: str) -> None:
    assert redis_url.startswith("redis://127.0.0.1:")


def test_triton_runs_a_torch_model_of_the_ml_environment(tmp_path: Path, triton: Callable[..., Any]) -> None:
    (tmp_path / "models" / "adder" / "1").mkdir(parents=True)
    (tmp_path / "models" / "adder" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "models" / "adder" / "1" / "model.py").write_text(MODEL)
    server = triton(repository=tmp_path / "models", models=("adder",), env={"OFFSET": "2.5"})
    body = b'{"inputs":[{"name":"X","shape":[3],"datatype":"FP32","data":[1.0,2.0,4.0]}]}'
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/adder/infer", data=body, timeout=seconds(30)) as answer:
        assert b'"data":[3.5,4.5,6.5]' in answer.read()
