"""LlmService and LlmAdminService over real gRPC, with an engine that is a fake and a real store: statuses, streams, hanging up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage, Sampling
from tunemesh.llm.v1 import llm_admin_service_pb2 as admin_pb
from tunemesh.llm.v1 import llm_admin_service_pb2_grpc, llm_service_pb2_grpc
from tunemesh.llm.v1 import llm_service_pb2 as pb

from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.lora_store import AdapterStore
from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.llm.adapter_pool import AdapterPool, AdapterUnusable
from services.llm.admin_servicer import LlmAdminServicer
from services.llm.core.generation import EngineGone, Generator, Limits
from services.llm.core.slots import Slots
from services.llm.server import admin_servicer_of, servicer_of
from services.llm.servicer import LlmServicer
from services.llm.settings import AdminSettings, LlmSettings
from tests.limits import seconds
from tests.llm_fakes import FakeEngine

NAME = "base--t--v1"


@dataclass
class Served:
    stub: llm_service_pb2_grpc.LlmServiceStub
    admin: llm_admin_service_pb2_grpc.LlmAdminServiceStub
    engine: FakeEngine
    pool: AdapterPool
    generator: Generator
    servicers: tuple[LlmServicer, LlmAdminServicer]

    def attach(self) -> None:
        self.servicers[0].attach(self.generator)
        self.servicers[1].attach(self.pool, self.generator, base_hash="sha256:base")


@pytest.fixture
async def unattached(tmp_path) -> AsyncIterator[Served]:
    signals = telemetry.disabled("llm")
    settings = LlmSettings(port=0, admin_port=0, drain_grace_ms=100)
    servicer, admin_servicer = LlmServicer(signals.meter), LlmAdminServicer(signals.meter)
    server = GrpcServer(settings, signals, [servicer_of(servicer)])
    admin_server = GrpcServer(AdminSettings.of(settings), signals, [admin_servicer_of(admin_servicer)])
    port, admin_port = await server.start(), await admin_server.start()
    engine = FakeEngine(context_tokens=50)
    store = AdapterStore(tmp_path / "artifacts")
    publish(store, tmp_path / "made", NAME, "base")
    publish(store, tmp_path / "made2", "other--t--v1", "other")
    pool = AdapterPool(Slots(1), store, engine, base_model="base", folder=tmp_path / "fetched", remove=shutil.rmtree)
    limits = Limits(max_prompt_bytes=1000, max_tokens=100, default_max_tokens=10, max_running=1)
    generator = Generator(engine, pool, base_model="base", limits=limits)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{admin_port}") as admin_channel,
    ):
        stub = llm_service_pb2_grpc.LlmServiceStub(channel)
        admin = llm_admin_service_pb2_grpc.LlmAdminServiceStub(admin_channel)
        yield Served(stub, admin, engine, pool, generator, (servicer, admin_servicer))
    await server.drain()
    await admin_server.drain()


@pytest.fixture
async def served(unattached) -> Served:
    unattached.attach()
    return unattached


def publish(store: AdapterStore, folder: Path, name: str, base: str) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    store.publish(name, folder, AdapterManifest(name=name, base_model=base, task="t"))


def request(text: str = "hello", **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(request_id="r", messages=[ChatMessage(role="user", content=text)], **fields)


async def answer(served: Served, message: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [response async for response in served.stub.Generate(message, timeout=seconds(5))]


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_until_the_model_is_loaded_every_call_says_so(unattached):
    for call in (
        answer(unattached, request()),
        unattached.stub.CountTokens(pb.CountTokensRequest(texts=["a"]), timeout=seconds(5)),
        unattached.admin.ListAdapters(admin_pb.ListAdaptersRequest(), timeout=seconds(5)),
        unattached.admin.ScoreAnswer(admin_pb.ScoreAnswerRequest(), timeout=seconds(5)),
    ):
        error = await refused(call)
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the model is still being loaded")


async def test_an_answer_is_a_stream_whose_ends_say_model_reason_and_usage(served):
    responses = await answer(served, request())
    assert [response.text for response in responses] == ["Hello", " there", "."]
    assert [response.model_version for response in responses] == ["base", "", ""]
    assert [response.finish_reason for response in responses] == ["", "", "stop"]
    assert [response.HasField("usage") for response in responses] == [False, False, True]
    assert (responses[-1].usage.prompt_tokens, responses[-1].usage.completion_tokens) == (5, 3)


async def test_sampling_reaches_the_engine(served):
    sampling = Sampling(temperature=0.5, top_p=0.25, max_tokens=4, seed=2**64 - 1, stop=["x", "y"], reproducible=True)
    await answer(served, request(sampling=sampling))
    (asked,) = served.engine.samplings
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.seed, asked.stop) == (0.5, 0.25, 4, 2**64 - 1, ("x", "y"))
    assert asked.reproducible


@pytest.mark.parametrize(
    ("message", "code", "detail"),
    [
        (pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "messages: there are 0"),
        (request("x" * 60), grpc.StatusCode.INVALID_ARGUMENT, "11 too many"),
        (request(sampling=Sampling(temperature=3)), grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        (request(adapter=NAME), grpc.StatusCode.NOT_FOUND, f"adapter {NAME} is not loaded"),
    ],
)
async def test_what_cannot_be_answered_has_its_status_and_reason(served, message, code, detail):
    error = await refused(answer(served, message))
    assert error.code() == code
    assert detail in (error.details() or "")


async def test_a_full_engine_refuses_and_hanging_up_makes_room(served):
    served.engine.forever = True
    call = served.stub.Generate(request(), timeout=seconds(30))
    await call.read()
    assert (await refused(answer(served, request()))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    call.cancel()
    async with asyncio.timeout(seconds(20)):
        while served.engine.open or served.generator.running:
            await asyncio.sleep(0.01)
    served.engine.forever = False
    assert len(await answer(served, request())) == 3


async def test_a_deadline_that_passes_stops_the_engine_too(served):
    served.engine.forever = True
    call = served.stub.Generate(request(), timeout=0.2)
    error = await refused(_read_all(call))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(seconds(20)):
        while served.engine.open:
            await asyncio.sleep(0.01)


async def _read_all(call) -> None:
    async for _ in call:
        pass


async def test_an_engine_that_dies_in_the_middle_ends_the_stream_with_unavailable(served):
    served.engine.pieces, served.engine.fails = served.engine.pieces[:1], EngineGone
    error = await refused(answer(served, request()))
    assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_an_adapter_is_loaded_listed_used_and_unloaded(served):
    loaded = await served.admin.LoadAdapter(admin_pb.LoadAdapterRequest(name=NAME), timeout=seconds(5))
    assert loaded.adapter.content_hash.startswith("sha256:")
    served.pool.point({"llm/t/production": NAME})
    listed = await served.admin.ListAdapters(admin_pb.ListAdaptersRequest(), timeout=seconds(5))
    (adapter,) = listed.adapters
    assert (listed.base_model, adapter.name, adapter.state) == ("base", NAME, admin_pb.ADAPTER_STATE_LIVE)
    assert listed.base_hash == "sha256:base"
    assert list(adapter.aliases) == ["llm/t/production"]
    assert (await answer(served, request(adapter=NAME)))[0].model_version == NAME
    error = await refused(served.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=NAME), timeout=seconds(5)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    served.pool.point({})
    await served.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=NAME), timeout=seconds(5))
    assert (await refused(answer(served, request(adapter=NAME)))).code() == grpc.StatusCode.NOT_FOUND
    error = await refused(served.admin.UnloadAdapter(admin_pb.UnloadAdapterRequest(name=NAME), timeout=seconds(5)))
    assert error.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("base--t--v7", grpc.StatusCode.NOT_FOUND),
        ("other--t--v1", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_an_adapter_that_cannot_be_loaded_has_its_status(served, name, code):
    assert (await refused(served.admin.LoadAdapter(admin_pb.LoadAdapterRequest(name=name), timeout=seconds(5)))).code() == code


async def test_an_adapter_that_the_engine_refuses_is_a_failed_precondition(served):
    served.engine.refuses = AdapterUnusable
    error = await refused(served.admin.LoadAdapter(admin_pb.LoadAdapterRequest(name=NAME), timeout=seconds(5)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert (await served.admin.ListAdapters(admin_pb.ListAdaptersRequest(), timeout=seconds(5))).adapters == []


async def test_counting(served):
    assert list((await served.stub.CountTokens(pb.CountTokensRequest(texts=["ab", "c"]), timeout=seconds(5))).counts) == [2, 1]
    error = await refused(served.stub.CountTokens(pb.CountTokensRequest(texts=["a"] * 257), timeout=seconds(5)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_answer_is_scored_after_its_prompt_with_the_adapter_or_the_base(served):
    def scored(answer: str, **fields):
        message = admin_pb.ScoreAnswerRequest(messages=[ChatMessage(role="user", content="hello")], answer=answer, **fields)
        return served.admin.ScoreAnswer(message, timeout=seconds(5))

    score = await scored("nine days")
    assert (score.log_likelihood, score.num_tokens) == (-4.5, 9)
    assert served.engine.scored == [(14, 9)]
    for answer, fields, code in (
        ("", {}, grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 45, {}, grpc.StatusCode.INVALID_ARGUMENT),
        ("nine", {"adapter": NAME}, grpc.StatusCode.NOT_FOUND),
    ):
        assert (await refused(scored(answer, **fields))).code() == code
