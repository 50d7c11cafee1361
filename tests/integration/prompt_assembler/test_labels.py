"""The prompt assembler as a process, with a real broker: labels are moved in control.v1, as the trainer's control API does it."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
import pytest
from tunemesh.events.v1.control_pb2 import Alias, ControlRecord
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2 as pb
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2_grpc

from services.common.events.topics import CONTROL
from services.common.platform.kafka_producer import durable_producer
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

pytestmark = pytest.mark.integration

PRODUCTION = "alias/prompt/answer/production"


def point(bootstrap: str, target: str, version: int) -> None:
    record = ControlRecord(subject=PRODUCTION, version=version, alias=Alias(target=target))
    producer = durable_producer(bootstrap, client_id="test")
    producer.send(CONTROL.name, key=PRODUCTION.encode(), value=record.SerializeToString()).get(seconds(10))
    producer.close()


async def answering(stub, prompt_version: str, timeout_s: float = 60.0) -> float:
    """Return after how many seconds that version answered, because its label says so."""
    started = time.monotonic()
    while True:
        response = await stub.Assemble(pb.AssembleRequest(template="answer", question="When?"), timeout=seconds(30))
        waited_s = time.monotonic() - started
        if response.prompt_version == prompt_version and "labels_unavailable" not in response.degraded_reason:
            return waited_s
        assert waited_s < seconds(timeout_s), f"{response.prompt_version} still answers, not {prompt_version}"
        await asyncio.sleep(0.05)


async def test_a_label_moved_and_moved_back_decides_within_seconds_and_holds_while_the_broker_is_down(fresh_broker, mesh_topics, tmp_path):
    await asyncio.to_thread(mesh_topics, fresh_broker.bootstrap)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_ARTIFACTS_URL": str(tmp_path / "artifacts"),
        "TUNEMESH_MODELS_DIR": str(tmp_path / "models"),
        "TUNEMESH_PROMPT_ASSEMBLER_PORT": "0",
    }
    with ServiceProcess("services.prompt_assembler", environment) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(channel)
            template = (await stub.GetTemplate(pb.GetTemplateRequest(name="answer", version=1), timeout=seconds(30))).template
            template.version, template.description = 0, "second"
            assert (await stub.PutTemplate(pb.PutTemplateRequest(template=template), timeout=seconds(30))).version == 2
            await asyncio.to_thread(point, fresh_broker.bootstrap, "v2", 1)
            await answering(stub, "answer@v2")
            waits_s = []
            for version, target in enumerate(("v1", "v2", "v1"), start=2):  # the shortest counts: the machine may stand still once
                await asyncio.to_thread(point, fresh_broker.bootstrap, target, version)
                waits_s.append(await answering(stub, f"answer@{target}"))
            assert min(waits_s) < seconds(5), waits_s
            fresh_broker.kill()
            await answering(stub, "answer@v1")
