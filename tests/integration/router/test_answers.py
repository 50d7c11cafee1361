"""Generate in a real router process on a real broker: what is logged, how an alias is followed, and what a broker's absence costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from kafka import KafkaProducer
from kafka.consumer.fetcher import ConsumerRecord
from tunemesh.events.v1 import control_pb2, generation_pb2
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.events.envelope import header
from services.common.platform.control import alias_subject
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.common.platform.telemetry_files import read_spans
from tests.answer_fakes import BASE, AnswerServers
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

pytestmark = pytest.mark.integration
ADAPTER = f"{BASE}--helpdesk--v1"


def move_alias(bootstrap: str, target: str, version: int) -> None:
    record = control_pb2.ControlRecord(
        subject=alias_subject("llm/helpdesk/production"), version=version, alias=control_pb2.Alias(target=target)
    )
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", allow_auto_create_topics=False)
    producer.send("control.v1", record.SerializeToString(), record.subject.encode()).get(seconds(10))
    producer.close(timeout=seconds(5))


def generations(bootstrap: str) -> list[Any]:
    consumer = assigned_consumer(bootstrap, "generations.v1", start="beginning", client_id="test")
    records = drain_to_end(consumer)
    consumer.close()
    return records


@pytest.fixture
async def servers() -> AsyncIterator[AnswerServers]:
    started = AnswerServers()
    await started.start()
    yield started
    await started.stop()


async def test_answers_are_logged_aliases_are_followed_and_the_broker_is_not_needed_to_answer(
    fresh_broker: Any, mesh_topics: Callable[..., None], tmp_path: Path, servers: AnswerServers
) -> None:
    mesh_topics(fresh_broker.bootstrap)
    servers.llm.adapters.add(ADAPTER)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_ROUTER_SPOOL_DIR": str(tmp_path / "spool"),
        "TUNEMESH_ROUTER_DELIVERY_TIMEOUT_MS": "500",
        "TUNEMESH_ROUTER_PORT": "0",
        **{f"TUNEMESH_ROUTER_{name.upper()}": target for name, target in servers.settings.items()},
    }
    with ServiceProcess("services.router", environment) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)

            async def ask() -> router_service_pb2.GenerateHeader:
                request = router_service_pb2.GenerateRequest(user_id="u", question="When?", task="helpdesk", retrieve=True)
                responses = [response async for response in stub.Generate(request, timeout=seconds(10))]
                assert "".join(response.text for response in responses) == "Heat is from 1995."
                return responses[0].header

            async def until(condition: Callable[[router_service_pb2.GenerateHeader], bool], limit_s: float) -> float:
                started = time.monotonic()
                while not condition(await ask()):
                    assert time.monotonic() - started < seconds(limit_s)
                    await asyncio.sleep(0.02)
                return time.monotonic() - started

            await until(lambda top: top.degraded_reason == "", 30)
            first = await ask()
            assert first.model_version == BASE
            waits_s = []
            for version, target in enumerate((ADAPTER, "base", ADAPTER, "base"), start=1):
                await asyncio.to_thread(move_alias, fresh_broker.bootstrap, target, version)
                wanted = BASE if target == "base" else target
                waits_s.append(await until(lambda top, wanted=wanted: top.model_version == wanted, 30))
            assert min(waits_s) < seconds(2), waits_s  # the machine may stand still once, not each time

            by_id: dict[str, tuple[ConsumerRecord, generation_pb2.Generation]] = {}
            async with asyncio.timeout(seconds(30)):
                while first.request_id not in by_id:
                    records = await asyncio.to_thread(generations, fresh_broker.bootstrap)
                    by_id = {(value := generation_pb2.Generation.FromString(each.value)).request_id: (each, value) for each in records}
            record, generation = by_id[first.request_id]
            assert (record.key, generation.answer, generation.task) == (b"u", "Heat is from 1995.", "helpdesk")
            trace_id = (header(record.headers, "traceparent") or "").split("-")[1]
            async with asyncio.timeout(seconds(30)):
                while (trace_id, "router.Generate") not in {
                    (span["trace_id"], span["name"]) for span in read_spans(tmp_path / "telemetry")
                }:
                    await asyncio.sleep(0.1)

            fresh_broker.kill()
            unlogged = await ask()
            async with asyncio.timeout(seconds(30)):
                while not any(unlogged.request_id.encode() in path.read_bytes() for path in (tmp_path / "spool").glob("*.spool")):
                    await asyncio.sleep(0.1)
            await until(lambda top: top.degraded_reason == "", 15)  # what control.v1 said stays known
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.log, process.log
