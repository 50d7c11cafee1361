"""TrainerService over real gRPC: a real worker on logs in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2 as pb
from tunemesh.trainer.v1 import trainer_service_pb2_grpc

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterNotFound
from services.common.platform import telemetry
from services.common.platform.errors import CorruptArtifact, Unavailable
from services.common.platform.grpc_server import GrpcServer
from services.trainer.base_schedule import BasePace
from services.trainer.server import servicer_of
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.worker import RankerWorker, WorkerConfig
from tests.limits import seconds
from tests.trainer_fakes.broker import FakeBroker, broker_with
from tests.trainer_fakes.learner import FakeLearner
from tests.trainer_fakes.life import start
from tests.trainer_fakes.logs import FakeDeadLetters, FakeReports
from tests.trainer_fakes.sample_logs import SPEC, sample_log


class FakeAdapters:
    """Adapters and what the adapter gate said; `failure` is raised in place of any answer."""

    def __init__(self) -> None:
        self.verdicts: dict[str, AdapterVerdict | None] = {}
        self.failure: Exception | None = None

    def manifest(self, name: AdapterName) -> AdapterManifest:
        if self.failure is not None:
            raise self.failure
        if str(name) not in self.verdicts:
            raise AdapterNotFound(f"there is no adapter {name}")
        return AdapterManifest(name=str(name), base_model=name.base, task=name.task)

    def verdict(self, name: AdapterName) -> AdapterVerdict | None:
        return self.verdicts[str(name)]

    def judge(self, name: str, *refusals: str) -> str:
        self.verdicts[name] = AdapterVerdict(name=name, accepted=not refusals, refusals=refusals)
        return name


@dataclass
class Service:
    stub: trainer_service_pb2_grpc.TrainerServiceStub
    learner: FakeLearner
    broker: FakeBroker
    worker: RankerWorker
    adapters: FakeAdapters

    async def status(self) -> pb.GetStatusResponse:
        response: pb.GetStatusResponse = await self.stub.GetStatus(pb.GetStatusRequest())
        return response


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    broker = broker_with(sample_log(1))
    life = start(broker)
    worker = RankerWorker(
        life.begin_epoch,
        SPEC,
        life.samples,
        FakeDeadLetters(broker),
        FakeReports(),
        WorkerConfig(
            samples_topic="samples.v1",
            publish_interval_ms=20,
            publish_gap_ms=5,
            checkpoint_interval_ms=10**9,
            base_pace=BasePace(interval_s=1e9),
        ),
        telemetry.disabled("trainer"),
    )
    adapters = FakeAdapters()
    servicer = TrainerServicer(model=SPEC.model, schema_hash=SPEC.schema_hash, adapters=adapters)
    server = GrpcServer(TrainerSettings(port=0), telemetry.disabled("trainer"), [servicer_of(servicer)])
    port = await server.start(serving=False)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    running = asyncio.create_task(asyncio.to_thread(worker.run))
    servicer.attach(worker, life.epoch.logs.owner)
    yield Service(trainer_service_pb2_grpc.TrainerServiceStub(channel), life.learner, broker, worker, adapters)
    worker.stop()
    await running
    await channel.close()
    await server.drain()


async def learned_all(service: Service) -> pb.GetStatusResponse:
    ends = [len(log) for log in service.broker.samples]
    async with asyncio.timeout(seconds(20)):
        while list((status := await service.status()).source_offsets) != ends or "like" not in status.prequential_auc:
            await asyncio.sleep(0.01)
    return status


async def test_status_shows_what_was_learned(service: Service) -> None:
    status = await learned_all(service)
    assert (status.model, status.schema_hash, status.epoch) == (SPEC.model, SPEC.schema_hash, 1)
    assert status.lineage_id == service.broker.control[0].lineage.lineage_id
    assert status.base_id == service.broker.bases[0].base_id
    assert status.samples_trained > 100
    assert status.duplicates_skipped > 0
    assert status.watermark_ms == 115_000
    assert status.prequential_auc["like"] == 0.75
    assert status.prequential_log_loss["like"] == 0.5
    assert set(status.table_rows) == {"user", "item"}
    assert not status.paused and not status.publishing_refused


async def test_pause_and_resume_may_be_repeated(service: Service) -> None:
    for _ in range(2):
        await service.stub.PauseLearning(pb.PauseLearningRequest())
        assert (await service.status()).paused
    for _ in range(2):
        await service.stub.ResumeLearning(pb.ResumeLearningRequest())
        assert not (await service.status()).paused


async def test_equal_offsets_give_equal_state_hashes(service: Service) -> None:
    await learned_all(service)
    first = await service.stub.WriteCheckpoint(pb.WriteCheckpointRequest())
    second = await service.stub.WriteCheckpoint(pb.WriteCheckpointRequest())
    assert first.state_hash == second.state_hash != ""
    assert first.checkpoint != second.checkpoint
    assert list(first.source_offsets) == [len(log) for log in service.broker.samples]


async def test_a_base_is_announced_under_the_id_that_the_caller_gets(service: Service) -> None:
    response = await service.stub.PublishBase(pb.PublishBaseRequest())
    assert (response.base_id, response.uri) == (service.broker.bases[-1].base_id, service.broker.bases[-1].uri)


ALIAS = "llm/helpdesk/production"
V1, V2, V3 = (f"Base--helpdesk--v{number}" for number in (1, 2, 3))


async def point(service: Service, target: str, **changes) -> int:
    try:
        version = (await service.stub.GetAlias(pb.GetAliasRequest(alias=ALIAS))).version
    except grpc.aio.AioRpcError:
        version = 0
    request = pb.SetAliasRequest(**{"alias": ALIAS, "target": target, "expected_version": version, "actor": "ci"} | changes)
    return int((await service.stub.SetAlias(request)).version)


async def test_an_adapter_answers_only_when_the_gate_accepted_it(service: Service) -> None:
    service.adapters.judge(V1)
    service.adapters.judge(V2, "it forgot to read", "it is slow")
    service.adapters.verdicts[V3] = None
    v4 = "Base--helpdesk--v4"
    service.adapters.verdicts[v4] = AdapterVerdict(name=v4, accepted=False, is_undecided=True, refusals=("not shown yet: it reads",))
    other = service.adapters.judge("Base--shipping--v1")
    for target, code, text in [
        (V2, grpc.StatusCode.FAILED_PRECONDITION, "the adapter gate refused Base--helpdesk--v2: it forgot to read; it is slow"),
        (V3, grpc.StatusCode.FAILED_PRECONDITION, "the adapter gate has not judged"),
        (v4, grpc.StatusCode.FAILED_PRECONDITION, "the adapter gate could not decide about Base--helpdesk--v4: not shown yet: it reads"),
        (other, grpc.StatusCode.FAILED_PRECONDITION, "judged on the questions of task 'shipping'"),
        ("Base--helpdesk--v9", grpc.StatusCode.NOT_FOUND, "no adapter"),
        ("v1", grpc.StatusCode.INVALID_ARGUMENT, "v1"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await point(service, target)
        assert caught.value.code() is code
        assert text in (caught.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError, match=text):
            await point(service, target, validate_only=True)
    assert await point(service, V1, validate_only=True) == 1
    assert await point(service, V1) == 1
    assert await point(service, "base") == 2
    assert await point(service, V2, allow_unjudged=True) == 3


@pytest.mark.parametrize("failure", [Unavailable("the store is down"), CorruptArtifact("verdict.json is torn")])
async def test_a_roll_back_does_not_need_the_artifact_store_and_anything_else_does(service: Service, failure: Exception) -> None:
    for name in (V1, V2, V3):
        service.adapters.judge(name)
    await point(service, V1)
    await point(service, V2)
    service.adapters.failure = failure
    with pytest.raises(grpc.aio.AioRpcError, match=str(failure)):
        await point(service, V3)
    assert await point(service, V1) == 3
    assert await point(service, "base") == 4


async def test_aliases_move_by_compare_and_set(service: Service) -> None:
    stub = service.stub
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await stub.GetAlias(pb.GetAliasRequest(alias="ranker/production"))
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    set_one = pb.SetAliasRequest(alias="ranker/production", target="base-1", expected_version=0, actor="ci")
    assert (await stub.SetAlias(set_one)).version == 1
    with pytest.raises(grpc.aio.AioRpcError) as conflict:
        await stub.SetAlias(set_one)
    assert conflict.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "version 1, not 0" in conflict.value.details()
    assert (
        await stub.SetAlias(pb.SetAliasRequest(alias="ranker/production", target="base-2", expected_version=1, actor="ci"))
    ).version == 2
    alias = await stub.GetAlias(pb.GetAliasRequest(alias="ranker/production"))
    assert (alias.target, alias.version) == ("base-2", 2)
    assert service.broker.control[-1].actor == "ci"


@pytest.mark.parametrize("field", ["alias", "target", "actor"])
async def test_an_alias_with_an_empty_or_long_name_is_invalid(service: Service, field: str) -> None:
    for value in ("", "x" * 257):
        request = pb.SetAliasRequest(**{"alias": "a", "target": "t", "actor": "x", field: value})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.stub.SetAlias(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith(field)


async def test_a_checkpoint_of_weights_that_the_gate_refuses_is_a_failed_precondition(service: Service) -> None:
    status = await learned_all(service)
    assert status.epoch == 1

    def poison() -> None:
        service.learner.dense[0] = np.nan
        service.learner.steps += 1

    await asyncio.wrap_future(service.worker.submit(poison))
    async with asyncio.timeout(seconds(20)):
        while not (status := await service.status()).publishing_refused:
            await asyncio.sleep(0.01)
    assert status.paused and "NaN" in status.publishing_refused
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.WriteCheckpoint(pb.WriteCheckpointRequest())
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_restore_answers_with_the_new_epoch_and_status_follows(service: Service) -> None:
    first = await service.stub.WriteCheckpoint(pb.WriteCheckpointRequest())
    status = await learned_all(service)
    request = pb.RestoreCheckpointRequest(not_after_ms=10**15, skip_later_samples=True, actor="ann")
    restored = await service.stub.RestoreCheckpoint(request)
    assert (restored.epoch, status.epoch) == (2, 1)
    assert (restored.checkpoint, restored.checkpoint_created_at_ms) == (first.checkpoint, 7)
    ends = [len(log) for log in service.broker.samples]
    assert list(restored.source_offsets) == ends
    assert list(restored.skipped) == [end - offset for end, offset in zip(ends, first.source_offsets, strict=True)]
    status = await service.status()
    assert (status.epoch, list(status.source_offsets), status.paused) == (2, ends, False)
    again = await service.stub.WriteCheckpoint(pb.WriteCheckpointRequest())
    assert again.state_hash == first.state_hash
    alias = pb.SetAliasRequest(alias="ranker/production", target="base-1", expected_version=0, actor="ci")
    assert (await service.stub.SetAlias(alias)).version == 1


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.RestoreCheckpointRequest(not_after_ms=5, actor="ann"), grpc.StatusCode.NOT_FOUND, "that are kept were written from"),
        (pb.RestoreCheckpointRequest(not_after_ms=0, actor="ann"), grpc.StatusCode.INVALID_ARGUMENT, "not_after_ms"),
        (pb.RestoreCheckpointRequest(not_after_ms=-1, actor="ann"), grpc.StatusCode.INVALID_ARGUMENT, "above 0"),
        (pb.RestoreCheckpointRequest(not_after_version="1.x", actor="ann"), grpc.StatusCode.INVALID_ARGUMENT, "EPOCH.SEQ is wanted"),
        (pb.RestoreCheckpointRequest(not_after_version="1.2", not_after_ms=3, actor="a"), grpc.StatusCode.INVALID_ARGUMENT, "one of them"),
        (pb.RestoreCheckpointRequest(not_after_version="9.9", actor="ann"), grpc.StatusCode.NOT_FOUND, "9.9 was not published yet"),
        (pb.RestoreCheckpointRequest(not_after_version="0.9", actor="ann"), grpc.StatusCode.NOT_FOUND, "no checkpoint holds version 0.9"),
        (pb.RestoreCheckpointRequest(not_after_ms=5), grpc.StatusCode.INVALID_ARGUMENT, "actor"),
    ],
)
async def test_a_restore_that_cannot_be_changes_nothing(
    service: Service, request_: pb.RestoreCheckpointRequest, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.RestoreCheckpoint(request_)
    assert refused.value.code() == code
    assert words in refused.value.details()
    assert (await learned_all(service)).epoch == 1


async def test_before_the_epoch_has_begun_calls_are_unavailable_and_health_is_not_serving() -> None:
    unattached = servicer_of(TrainerServicer(model=SPEC.model, schema_hash=SPEC.schema_hash, adapters=FakeAdapters()))
    server = GrpcServer(TrainerSettings(port=0), telemetry.disabled("trainer"), [unattached])
    port = await server.start(serving=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        for call, request in (
            (stub.GetStatus, pb.GetStatusRequest()),
            (stub.PauseLearning, pb.PauseLearningRequest()),
            (stub.GetAlias, pb.GetAliasRequest(alias="a")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.drain()


async def test_after_the_worker_ended_commands_are_unavailable(service: Service) -> None:
    service.worker.stop()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.PauseLearning(pb.PauseLearningRequest())
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
