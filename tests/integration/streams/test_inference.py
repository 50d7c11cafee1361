"""The asynchronous door as a process, between a real broker and a router behind real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from kafka import KafkaProducer
from tunemesh.common.v1 import chat_pb2, passage_pb2
from tunemesh.events.v1 import dead_letter_pb2, inference_pb2
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.events import envelope
from services.common.platform.kafka import assigned_consumer
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, Process
from tests.limits import seconds

pytestmark = pytest.mark.integration
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class FakeRouter(router_service_pb2_grpc.RouterServiceServicer):
    """Answers by echo; "flaky" fails once, "away" always, "bad" is refused, "slow" waits."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.traces: set[str] = set()
        self.running = self.most_running = 0
        self.release = asyncio.Event()

    async def Generate(self, request, context):
        self.questions.append(request.question)
        self.traces.add(dict(context.invocation_metadata()).get("traceparent", "").split("-")[1])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if request.question == "bad":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "question: it is bad")
            if request.question == "away" or (request.question == "flaky" and self.questions.count("flaky") == 1):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the llm is down")
            if request.question == "slow":
                await self.release.wait()
            await asyncio.sleep(0.05)
            header = router_service_pb2.GenerateHeader(
                request_id=f"r-{request.question}",
                model_version="M",
                prompt_version="answer@v1",
                passages=[passage_pb2.Passage(passage_id="catalog:1")],
            )
            yield router_service_pb2.GenerateResponse(header=header)
            for word in ("you ", f"said {request.question}"):
                yield router_service_pb2.GenerateResponse(text=word)
            yield router_service_pb2.GenerateResponse(finish_reason="stop", usage=chat_pb2.TokenUsage(prompt_tokens=3, completion_tokens=2))
        finally:
            self.running -= 1


class Bench:
    """The door, what is sent to it and what comes out."""

    def __init__(self, bootstrap: str, folder: Path, router_port: int) -> None:
        self._env = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
            "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
            "TUNEMESH_INFERENCE_PORT": "0",
            "TUNEMESH_INFERENCE_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
            "TUNEMESH_INFERENCE_ROUTER_TARGET": f"127.0.0.1:{router_port}",
            "TUNEMESH_INFERENCE_MAX_RUNNING": "3",
            "TUNEMESH_INFERENCE_MAX_ATTEMPTS": "3",
            "TUNEMESH_INFERENCE_FIRST_PAUSE_MS": "50",
        }
        self._folder = folder
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0, allow_auto_create_topics=False)
        topics = ("inference.responses.v1", "inference.requests.v1.dlq.v1")
        self._consumers = {topic: assigned_consumer(bootstrap, topic, start="beginning", client_id="test") for topic in topics}
        self.responses: list[Any] = []
        self.letters: list[dead_letter_pb2.DeadLetter] = []

    def start(self) -> None:
        self.process = Process("streams.inference", self._folder / f"door-{time.monotonic_ns()}.log", self._env)
        self.process.wait_for("taken up", timeout_s=60)

    def ask(self, question: str, *, inference_id: str | None = None, **fields: Any) -> None:
        request = inference_pb2.InferenceRequest(inference_id=inference_id or f"i-{question}", user_id="u", question=question, **fields)
        self.send(request.SerializeToString())

    def send(self, value: bytes) -> None:
        headers = envelope.headers_for("t", "/test", traceparent=TRACE)
        self._producer.send("inference.requests.v1", value, b"u", headers=headers).get(seconds(10))

    def read(self, *, responses: int, letters: int, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + seconds(timeout_s)
        while len(self.responses) < responses or len(self.letters) < letters:
            assert time.monotonic() < deadline, f"{len(self.responses)} responses, {len(self.letters)} dead letters"
            self.poll()

    def poll(self) -> None:
        for topic, consumer in self._consumers.items():
            for batch in consumer.poll(timeout_ms=50).values():
                (self.responses if topic == "inference.responses.v1" else self.letters).extend(
                    record if topic == "inference.responses.v1" else dead_letter_pb2.DeadLetter.FromString(record.value) for record in batch
                )

    def answers(self) -> list[inference_pb2.InferenceResponse]:
        return [inference_pb2.InferenceResponse.FromString(record.value) for record in self.responses]

    def close(self) -> None:
        self.process.stop()
        self._producer.close(timeout=seconds(5))
        for consumer in self._consumers.values():
            consumer.close()


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    fake = FakeRouter()
    server = grpc.aio.server()
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(fake, server)
    fake.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield fake
    await server.stop(None)


async def test_questions_are_answered_once_or_set_aside_and_none_is_lost_when_the_door_dies(
    fresh_broker, mesh_topics, tmp_path: Path, router: FakeRouter
) -> None:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    bench = Bench(fresh_broker.bootstrap, tmp_path, router.port)
    try:
        await asyncio.to_thread(bench.start)
        bench.ask("hello")
        bench.ask("hello")  # a repeat
        bench.ask("flaky")
        bench.ask("bad")
        bench.ask("away")
        bench.ask("old", expires_at_ms=1)
        bench.send(b"\xff\xff")
        bench.send(inference_pb2.InferenceRequest(user_id="u", question="nameless").SerializeToString())
        await asyncio.to_thread(bench.read, responses=2, letters=5)
        by_id = {answer.inference_id: answer for answer in bench.answers()}
        assert set(by_id) == {"i-hello", "i-flaky"} and len(bench.responses) == 2
        hello = by_id["i-hello"]
        assert (hello.answer, hello.request_id, hello.finish_reason, hello.model_version) == ("you said hello", "r-hello", "stop", "M")
        assert (hello.prompt_version, list(hello.passage_ids), hello.usage.completion_tokens) == ("answer@v1", ["catalog:1"], 2)
        assert bench.responses[0].key == b"u" and hello.finished_at_ms > 0
        assert {(envelope.header(record.headers, "traceparent") or "").split("-")[1] for record in bench.responses} == {TRACE.split("-")[1]}
        assert router.traces == {TRACE.split("-")[1]}
        assert sorted(letter.reason for letter in bench.letters) == ["expired", "malformed", "malformed", "refused", "unanswered"]
        assert (router.questions.count("hello"), router.questions.count("flaky"), router.questions.count("away")) == (1, 2, 3)

        # The door dies with questions under way, some of them answered out of order: all are answered by the next one.
        bench.ask("slow")
        for number in range(6):
            bench.ask(f"q{number}")
        await asyncio.to_thread(bench.read, responses=8, letters=5)
        assert router.most_running <= 3
        await asyncio.to_thread(bench.process.kill)
        router.release.set()
        await asyncio.to_thread(bench.start)
        await asyncio.to_thread(bench.read, responses=9, letters=5, timeout_s=60)
        async with asyncio.timeout(seconds(30)):
            while "i-slow" not in {answer.inference_id for answer in bench.answers()}:
                await asyncio.to_thread(bench.poll)
        assert "Traceback" not in bench.process.log.read_text() and await asyncio.to_thread(bench.process.stop) == 0
    finally:
        await asyncio.to_thread(bench.close)


async def test_a_backlog_far_above_what_the_door_reads_ahead_is_answered_whole(
    fresh_broker, mesh_topics, tmp_path: Path, router: FakeRouter
) -> None:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    bench = Bench(fresh_broker.bootstrap, tmp_path, router.port)
    names = {f"q{number}" for number in range(400)}
    for name in sorted(names):
        bench.ask(name)
    try:
        await asyncio.to_thread(bench.start)
        await asyncio.to_thread(bench.read, responses=len(names), letters=0, timeout_s=120)
        assert sorted(answer.inference_id for answer in bench.answers()) == sorted(f"i-{name}" for name in names)
        assert router.most_running == 3
    finally:
        await asyncio.to_thread(bench.close)
