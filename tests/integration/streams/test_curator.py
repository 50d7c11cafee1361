"""The curator as a process on a real broker: from feedback to example, and what a death of it costs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer
from tunemesh.common.v1 import chat_pb2
from tunemesh.events.v1 import dead_letter_pb2, example_pb2, feedback_pb2, generation_pb2

from services.common.events import envelope
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, Process
from tests.limits import seconds

pytestmark = pytest.mark.integration
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Bench:
    """A curator, a producer before it and a reader behind it."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self._folder = folder
        self._env = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
            "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
            "TUNEMESH_CURATOR_PORT": "0",
            "TUNEMESH_CURATOR_STORE_DIR": str(folder / "store"),
            "TUNEMESH_CURATOR_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
            "TUNEMESH_CURATOR_WAIT_MS": "3000",
        }
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0, allow_auto_create_topics=False)
        topics = ("llm.examples.v1", "feedback.v1.dlq.v1", "generations.v1.dlq.v1")
        self._consumers = {topic: assigned_consumer(bootstrap, topic, start="beginning", client_id="test") for topic in topics}
        self.examples: list[tuple[example_pb2.LlmExample, str]] = []
        self.letters: list[dead_letter_pb2.DeadLetter] = []
        self.num_started = 0

    def start(self) -> Process:
        self.process = Process("streams.curator", self._folder / f"curator-{self.num_started}.log", self._env)
        self.num_started += 1
        self.process.wait_for("taken up", count=PARTITIONS)
        return self.process

    def forget_answers(self) -> None:
        """As when a worker takes over on another host."""
        shutil.rmtree(self._folder / "store")

    def close(self) -> None:
        self.process.stop()
        self._producer.close(timeout=seconds(5))
        for consumer in self._consumers.values():
            consumer.close()

    def generate(self, question: str, *, user_id: str = "u1", answer: str = "A week.", context: str = "") -> generation_pb2.Generation:
        generation = generation_pb2.Generation(
            request_id=uuid7(),
            user_id=user_id,
            task="helpdesk",
            question=question,
            messages=[chat_pb2.ChatMessage(role="user", content=f"{context}{question}")],
            answer=answer,
            finish_reason="stop",
            variant="default",
            model_version="M",
            prompt_version="answer@v1",
            passage_ids=["catalog:1"],
            finished_at_ms=now_ms(),
            context_given=bool(context),
        )
        self.send("generations.v1", user_id, generation.SerializeToString())
        return generation

    def say(self, generation: generation_pb2.Generation, kind: str, value: float = 0.0, text: str = "") -> feedback_pb2.Feedback:
        feedback = feedback_pb2.Feedback(
            feedback_id=f"f-{uuid7()}",
            request_id=generation.request_id,
            user_id=generation.user_id,
            kind=kind,
            value=value,
            text=text,
            accepted_at_ms=now_ms(),
        )
        self.send("feedback.v1", generation.user_id, feedback.SerializeToString())
        return feedback

    def send(self, topic: str, key: str, value: bytes) -> None:
        self._producer.send(topic, value, key.encode(), headers=envelope.headers_for("t", "/test", traceparent=TRACE)).get(seconds(10))

    def read(self, *, examples: int, letters: int, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + seconds(timeout_s)
        while len(self.examples) < examples or len(self.letters) < letters:
            assert time.monotonic() < deadline, f"{len(self.examples)} examples, {len(self.letters)} dead letters"
            self.poll()

    def poll(self) -> None:
        for topic, consumer in self._consumers.items():
            for batch in consumer.poll(timeout_ms=30).values():
                for record in batch:
                    if topic == "llm.examples.v1":
                        trace = envelope.header(record.headers, "traceparent") or ""
                        self.examples.append((example_pb2.LlmExample.FromString(record.value), trace))
                        assert record.key == b"helpdesk"
                    else:
                        self.letters.append(dead_letter_pb2.DeadLetter.FromString(record.value))


@pytest.fixture
def bench(fresh_broker, mesh_topics, tmp_path: Path) -> Iterator[Bench]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    made = Bench(fresh_broker.bootstrap, tmp_path)
    made.start()
    yield made
    made.close()


def test_feedback_becomes_an_example_within_two_seconds_and_never_twice_though_the_curator_dies(bench) -> None:
    first = bench.generate("How long may I keep a film?")
    bench.generate("warms the consumer up", user_id="u2")
    time.sleep(1.0)
    started = time.monotonic()
    demonstration = bench.say(first, "demonstration", text="Nine days.")
    bench.read(examples=1, letters=0)
    took_s = time.monotonic() - started
    example, trace = bench.examples[0]
    assert (example.kind, example.task, example.answer) == (example_pb2.EXAMPLE_KIND_DEMONSTRATION, "helpdesk", "Nine days.")
    assert (example.request_id, example.feedback_id) == (first.request_id, demonstration.feedback_id)
    assert list(example.messages) == list(first.messages) and example.question == first.question
    assert (example.prompt_version, example.model_version, list(example.passage_ids)) == ("answer@v1", "M", ["catalog:1"])
    assert trace.split("-")[1] == TRACE.split("-")[1]

    bench.say(first, "boolean", 1.0)
    bench.say(first, "comment", text="Too short.")
    bench.say(first, "demonstration", text="Write to jane@example.com")
    given = bench.generate("Where is it?", user_id="u4", context="An order of jane@example.com: ")
    bench.say(given, "demonstration", text="In the green box.")
    bench.say(first, "boolean", 0.5)
    bench.say(generation_pb2.Generation(request_id="never made", user_id="u3"), "score", 0.5)
    bench.read(examples=3, letters=4)
    judged = [example for example, _ in bench.examples[1:]]
    assert {each.kind for each in judged} == {example_pb2.EXAMPLE_KIND_JUDGED}
    assert [(each.answer, each.score, each.comment) for each in judged] == [("A week.", 1.0, ""), ("A week.", 0.0, "Too short.")]
    letters = {letter.reason: letter for letter in bench.letters}
    assert set(letters) == {"pii", "malformed", "orphan"}
    assert letters["pii"].value == b"" and "jane" not in str(letters["pii"]) and letters["malformed"].value

    bench.process.kill()
    bench.forget_answers()
    bench.say(first, "boolean", 1.0)  # an equal one stands in the log
    again = bench.say(first, "demonstration", text="Nine days, then it is late.")
    bench.start()
    bench.read(examples=4, letters=4, timeout_s=40)
    time.sleep(1.0)
    bench.poll()
    assert [example.feedback_id for example, _ in bench.examples[3:]] == [again.feedback_id]
    assert len({example.example_id for example, _ in bench.examples}) == 4

    other = bench.generate("May I keep it longer?", user_id="u5")
    time.sleep(1.0)
    started = time.monotonic()
    bench.say(other, "demonstration", text="Once.")
    bench.read(examples=5, letters=4)
    assert min(took_s, time.monotonic() - started) < seconds(2)  # the quicker one: the machine may stand still once
    assert bench.process.stop() == 0 and "Traceback" not in bench.process.log.read_text()
