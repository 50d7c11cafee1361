"""TunerService over real gRPC, with fakes for everything outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from tunemesh.trainer.v1 import tuner_service_pb2 as pb
from tunemesh.trainer.v1 import tuner_service_pb2_grpc

from services.common.language.evaluation import Evaluation
from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.tuner.neighbours import Live
from services.tuner.server import servicer_of
from services.tuner.settings import TunerSettings
from tests.limits import seconds
from tests.tuner_fakes import EVALUATION, TASK, Desk

Stub = tuner_service_pb2_grpc.TunerServiceStub


@pytest.fixture
async def desk() -> Desk:
    return Desk()


@pytest.fixture
async def stub(desk: Desk) -> AsyncIterator[Stub]:
    aliases = {f"llm/{TASK}/production": "Base--helpdesk--v1"}
    server = GrpcServer(TunerSettings(port=0, drain_grace_ms=100), telemetry.disabled("tuner"), [servicer_of(desk.tuner, aliases.get)])
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stub(channel)
    await desk.tuner.stop()
    await server.drain()


async def finished(stub: Stub, tune_id: str) -> pb.GetTuneResponse:
    while True:
        tune = await stub.GetTune(pb.GetTuneRequest(tune_id=tune_id), timeout=seconds(5))
        if tune.phase in {"live", "refused", "undecided", "failed"}:
            return tune
        await asyncio.sleep(0.01)


async def test_a_tune_is_started_watched_and_ends_live_with_its_numbers(stub):
    started = await stub.StartTune(pb.StartTuneRequest(task=TASK, actor="me"), timeout=seconds(5))
    assert (started.tune_id, started.adapter) == ("tune-0", "Base--helpdesk--v1")
    tune = await finished(stub, started.tune_id)
    assert (tune.task, tune.adapter, tune.phase, tune.mlflow_run_id) == (TASK, "Base--helpdesk--v1", "live", "run of Base--helpdesk--v1")
    assert (tune.step, tune.num_steps, tune.loss) == (2, 20, 0.5)
    assert tune.metrics["task.candidate"] > 0.8
    assert tune.metrics["task.base"] == 0.0
    assert list(tune.refusals) == []


async def test_a_refused_tune_says_why(stub, desk):
    desk.serving.default = (20, 270)
    started = await stub.StartTune(pb.StartTuneRequest(task=TASK, actor="me"), timeout=seconds(5))
    tune = await finished(stub, started.tune_id)
    assert tune.phase == "refused"
    assert tune.refusals[0].startswith("the task slice is answered right in 0.")
    assert tune.refusals[0].endswith(" cases, below the floor of 0.50")


async def test_the_status_has_every_task_with_what_it_waits_for(stub, desk):
    desk.add(3, task="other")
    desk.control.paused = True
    status = await stub.GetTunerStatus(pb.GetTunerStatusRequest(), timeout=seconds(5))
    assert (status.base_model, status.paused, status.running_tune_id) == ("Base", True, "")
    assert status.tasks[TASK] == pb.TaskStatus(demonstrations=20, judged=0, waiting_for="", live="Base--helpdesk--v1")
    assert status.tasks["other"].waiting_for == "3 demonstrations are there and 20 are needed"
    assert status.tasks["other"].live == "base"


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (pb.StartTuneRequest(task="../x", actor="me"), grpc.StatusCode.INVALID_ARGUMENT, "task: '../x' is not"),
        (pb.StartTuneRequest(task=TASK), grpc.StatusCode.INVALID_ARGUMENT, "actor: it has 0 characters"),
        (
            pb.StartTuneRequest(task="other", actor="me"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "0 demonstrations are there and 20 are needed",
        ),
    ],
)
async def test_a_tune_that_cannot_start_gets_its_status(stub, request_, code, detail):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StartTune(request_, timeout=seconds(5))
    assert caught.value.code() is code
    assert detail in (caught.value.details() or "")


async def test_an_undecided_adapter_is_judged_again_when_there_are_more_questions(stub, desk):
    desk.control.now = Live("Base--helpdesk--v7", 1)
    desk.serving.skills["Base--helpdesk--v7"] = desk.serving.default
    desk.evaluations.evaluation = Evaluation(task_slice=EVALUATION.task_slice[:40], context_slice=EVALUATION.context_slice[:40])
    started = await stub.StartTune(pb.StartTuneRequest(task=TASK, actor="me"), timeout=seconds(5))
    tune = await finished(stub, started.tune_id)
    assert tune.phase == "undecided"
    assert tune.questions_needed > 0
    desk.evaluations.evaluation = EVALUATION
    judged = await stub.JudgeAdapter(pb.JudgeAdapterRequest(adapter=started.adapter, actor="me"), timeout=seconds(5))
    again = await finished(stub, judged.tune_id)
    assert (again.phase, again.adapter, len(desk.tuning.jobs)) == ("live", started.adapter, 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.JudgeAdapter(pb.JudgeAdapterRequest(adapter=started.adapter, actor="me"), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "was accepted already" in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("adapter", "actor", "code"),
    [
        ("../x", "me", grpc.StatusCode.INVALID_ARGUMENT),
        ("Base--helpdesk--v9", "", grpc.StatusCode.INVALID_ARGUMENT),
        ("Base--helpdesk--v9", "me", grpc.StatusCode.NOT_FOUND),
        ("Other--helpdesk--v9", "me", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_an_adapter_that_cannot_be_judged_gets_its_status(stub, adapter, actor, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.JudgeAdapter(pb.JudgeAdapterRequest(adapter=adapter, actor=actor), timeout=seconds(5))
    assert caught.value.code() is code


async def test_a_second_tune_waits_for_the_first_to_end(stub, desk):
    desk.tuning.hold = asyncio.Event()
    await stub.StartTune(pb.StartTuneRequest(task=TASK, actor="me"), timeout=seconds(5))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StartTune(pb.StartTuneRequest(task=TASK, actor="me"), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (await stub.GetTunerStatus(pb.GetTunerStatusRequest(), timeout=seconds(5))).running_tune_id == "tune-0"


async def test_an_unknown_tune_is_not_found(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTune(pb.GetTuneRequest(tune_id="x"), timeout=seconds(5))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
