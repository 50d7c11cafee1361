"""PromptAssemblerService over real gRPC: in process over a real store, and as a real process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.common.v1 import chat_pb2, passage_pb2
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2 as pb
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.prompt_assembler.server import make_assembler, servicer_of
from services.prompt_assembler.settings import PromptAssemblerSettings
from services.prompt_assembler.tokens import EstimatedTokens
from tests.edge_fakes import ServiceProcess
from tests.limits import seconds

HEALTH_NAME = "tunemesh.prompt_assembler.v1.PromptAssemblerService"


class FixedLabels:
    is_known = True

    def __init__(self) -> None:
        self.targets: dict[str, int] = {}

    def of(self, template: str) -> dict[str, int]:
        return self.targets if template == "answer" else {}


@pytest.fixture
def labels() -> FixedLabels:
    return FixedLabels()


@pytest.fixture
async def stub(labels, tmp_path) -> AsyncIterator[prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub]:
    settings = PromptAssemblerSettings(port=0, drain_grace_ms=100, artifacts_url=str(tmp_path))
    signals = telemetry.disabled("prompt_assembler")
    server = GrpcServer(settings, signals, [servicer_of(make_assembler(settings, labels, EstimatedTokens()), signals)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(channel)
    await server.drain()


def passages(*texts: str) -> list[passage_pb2.Passage]:
    return [passage_pb2.Passage(passage_id=f"catalog:{number}", title="Title", text=text) for number, text in enumerate(texts, 1)]


async def test_a_prompt_holds_the_question_the_passages_and_the_history(stub):
    history = [chat_pb2.ChatMessage(role="user", content="Hi"), chat_pb2.ChatMessage(role="assistant", content="Hello")]
    request = pb.AssembleRequest(template="answer", question="When?", passages=passages("In 1995."), history=history)
    response = await stub.Assemble(request, timeout=seconds(5))
    assert [message.role for message in response.messages] == ["system", "user", "assistant", "user"]
    assert "Title: In 1995." in response.messages[-1].content and response.messages[-1].content.endswith("When?")
    assert response.prompt_version == "answer@v1" and response.used_passage_ids == ["catalog:1"]
    assert response.prompt_tokens > 0 and response.degraded_reason == "tokens_estimated"


async def test_the_callers_budget_is_kept(stub):
    request = pb.AssembleRequest(template="answer", question="When?", passages=passages(*["word " * 40] * 20), max_prompt_tokens=800)
    response = await stub.Assemble(request, timeout=seconds(5))
    assert 0 < len(response.used_passage_ids) < 20 and response.prompt_tokens <= 800
    assert list(response.used_passage_ids) == [f"catalog:{number}" for number in range(1, len(response.used_passage_ids) + 1)]


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        (pb.AssembleRequest(template="answer"), grpc.StatusCode.INVALID_ARGUMENT, "question"),
        (pb.AssembleRequest(template="answer", question="x", max_prompt_tokens=3), grpc.StatusCode.INVALID_ARGUMENT, "at most 3"),
        (pb.AssembleRequest(template="../x", question="x"), grpc.StatusCode.INVALID_ARGUMENT, "template"),
        (pb.AssembleRequest(template="nope", question="x"), grpc.StatusCode.NOT_FOUND, "nope"),
        (pb.AssembleRequest(template="answer", label="nope", question="x"), grpc.StatusCode.NOT_FOUND, "nope"),
    ],
)
async def test_what_cannot_be_assembled_has_a_status_that_says_why(stub, request_, status, detail):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Assemble(request_, timeout=seconds(5))
    assert caught.value.code() is status and detail in caught.value.details()


async def test_a_put_version_is_listed_is_read_back_and_answers_once_its_label_points_at_it(stub, labels):
    template = (await stub.GetTemplate(pb.GetTemplateRequest(name="answer"), timeout=seconds(5))).template
    template.version, template.messages[0].content = 0, "Answer like a pirate."
    assert (await stub.PutTemplate(pb.PutTemplateRequest(template=template), timeout=seconds(5))).version == 2
    assert (await stub.PutTemplate(pb.PutTemplateRequest(template=template), timeout=seconds(5))).version == 2
    before = await stub.Assemble(pb.AssembleRequest(template="answer", question="When?"), timeout=seconds(5))
    labels.targets = {"production": 2}
    after = await stub.Assemble(pb.AssembleRequest(template="answer", question="When?"), timeout=seconds(5))
    assert (before.prompt_version, after.prompt_version) == ("answer@v1", "answer@v2")
    assert after.messages[0].content == "Answer like a pirate."
    found = await stub.GetTemplate(pb.GetTemplateRequest(name="answer"), timeout=seconds(5))
    assert found.template.version == 2 and found.labels == ["production"]
    (summary,) = (await stub.ListTemplates(pb.ListTemplatesRequest(), timeout=seconds(5))).templates
    assert (summary.name, summary.newest_version, dict(summary.labels)) == ("answer", 2, {"production": 2})


# The real process.


def environment(tmp_path, **overrides: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_ARTIFACTS_URL": str(tmp_path / "artifacts"),
        "TUNEMESH_MODELS_DIR": str(tmp_path / "models"),
        "TUNEMESH_PROMPT_ASSEMBLER_PORT": "0",
        **overrides,
    }


async def test_a_process_without_broker_and_model_answers_says_what_is_missing_and_drains_on_sigterm(tmp_path):
    with ServiceProcess("services.prompt_assembler", environment(tmp_path)) as process:
        port = await asyncio.to_thread(process.wait_ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(channel)
            response = await stub.Assemble(pb.AssembleRequest(template="answer", question="When?"), timeout=seconds(5))
            assert response.degraded_reason == "labels_unavailable,tokens_estimated"
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(100):
                if (
                    await health.Check(health_pb2.HealthCheckRequest(service=HEALTH_NAME))
                ).status == health_pb2.HealthCheckResponse.SERVING:
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail("a broker that is down keeps the service from serving")
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TUNEMESH_PROMPT_ASSEMBLER_MAX_VERSIONS": "0"}, "TUNEMESH_PROMPT_ASSEMBLER_MAX_VERSIONS=0"),
        ({"TUNEMESH_PROMPT_ASSEMBLER_PROT": "5"}, "did you mean TUNEMESH_PROMPT_ASSEMBLER_PORT?"),
        ({"TUNEMESH_ARTIFACTS_URL": "nosuch://x"}, "TUNEMESH_ARTIFACTS_URL=nosuch://x"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, variables, expected):
    with ServiceProcess("services.prompt_assembler", environment(tmp_path, **variables)) as process:
        assert process.wait() == 2
    assert process.lines[-1].startswith("configuration error: ") and expected in process.lines[-1]
    assert len(process.lines) == 1
