"""The gate on what real adapters answer: vLLM, router and prompt assembler as processes, trainings as the tuner makes them.

Two adapters that must not go live: one tuned on the demonstrations alone, which forgets to read, and one tuned on shuffled answers, which
learns nothing. Both are refused by the limits that the tuner has by default. Few steps and few questions: 4 to 6 minutes on two cores.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtests.demo import helpdesk
from loadtests.movielens import load_films
from services.common.events.catalog import CatalogItem
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.base_model import PACKAGED_MODEL, BaseModel, packaged_folder
from services.common.language.evaluation import Evaluation
from services.common.language.lora_store import AdapterStore
from services.common.platform.clock import wall_ms
from services.common.platform.grpc_client import open_channel
from services.llm.weights import prepare
from services.mesh.runner.embedded import free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.tuner.async_adapter_store import AsyncAdapterStore
from services.tuner.examples import Demonstration
from services.tuner.grpc_calls import Retries
from services.tuner.grpc_prompts import GrpcPrompts
from services.tuner.grpc_serving import GrpcServing
from services.tuner.mirror import NoMirror
from services.tuner.neighbours import Live, Neighbours
from services.tuner.replay import ReplayExample
from services.tuner.server import recipe_of
from services.tuner.settings import TunerSettings
from services.tuner.training_process import TrainingProcess
from services.tuner.tune import Collected, Tune
from services.tuner.tune_status import TuneStatus
from tests.conftest import Broker
from tests.service_process import Service

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.deep, pytest.mark.timeout(1200)]

NUM_CONTEXT = 32
MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Chain:
    """Where the running services are."""

    router: str
    llm_admin: str
    prompt_assembler: str
    folder: Path


class NothingLive:
    """control.v1 before anything was live. A refused adapter must never get here to be set."""

    async def live(self, task: str) -> Live:
        return Live(BASE_MODEL, 0)

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        raise AssertionError(f"{name} was let through")


class Films:
    """The demo's catalogue, without a broker in between."""

    async def given(self, task: str) -> Sequence[ReplayExample] | None:
        return None

    async def items(self) -> Sequence[CatalogItem]:
        return [CatalogItem(item_id=film.item_id, title=film.title, categories=film.categories) for film in load_films().values()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Iterator[Chain]:
    from services.mesh.runner.topics import create_topics, mesh_topic_partitions

    models_dir, folder = REPOSITORY_ROOT / "build" / "models", tmp_path_factory.mktemp("chain")
    prepare(PACKAGED_MODEL, models_dir)
    broker = Broker(folder / "broker")
    create_topics(broker.bootstrap, mesh_topic_partitions(user_partitions=2, shards=1))
    shared = {
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "TUNEMESH_MODELS_DIR": str(models_dir),
        "TUNEMESH_ARTIFACTS_URL": str(folder / "artifacts"),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
    }
    llm_port, admin_port, assembler_port = free_ports(3)
    services = [
        Service(
            "ml",
            "services.llm",
            shared
            | {
                "TUNEMESH_LLM_PORT": str(llm_port),
                "TUNEMESH_LLM_ADMIN_PORT": str(admin_port),
                "TUNEMESH_LLM_ADAPTERS_DIR": str(folder / "adapters"),
                "TUNEMESH_LLM_KV_CACHE_GIB": "0.5",
            },
            folder / "llm.log",
        ),
        Service(
            "light",
            "services.prompt_assembler",
            shared | {"TUNEMESH_PROMPT_ASSEMBLER_PORT": str(assembler_port)},
            folder / "prompt_assembler.log",
        ),
        Service(
            "light",
            "services.router",
            shared
            | {
                "TUNEMESH_ROUTER_PORT": "0",
                "TUNEMESH_ROUTER_SPOOL_DIR": str(folder / "spool"),
                "TUNEMESH_ROUTER_LLM_TARGET": f"127.0.0.1:{llm_port}",
                "TUNEMESH_ROUTER_PROMPT_ASSEMBLER_TARGET": f"127.0.0.1:{assembler_port}",
            },
            folder / "router.log",
        ),
    ]
    try:
        ports = [service.wait_ready() for service in services]
        _wait_serving(f"127.0.0.1:{llm_port}", services[0])
        yield Chain(f"127.0.0.1:{ports[2]}", f"127.0.0.1:{admin_port}", f"127.0.0.1:{assembler_port}", folder)
    finally:
        for service in services:
            service.kill()
        broker.stop()


def _wait_serving(target: str, service: Service, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                found = health.Check(health_pb2.HealthCheckRequest(service=""), timeout=5).status
            except grpc.RpcError:
                found = None
            if found == health_pb2.HealthCheckResponse.SERVING:
                return
            assert time.monotonic() < deadline, service.log
            time.sleep(0.5)


class Bench:
    """Tunes with the tuner's own parts on the running chain."""

    def __init__(self, chain: Chain) -> None:
        channels = [open_channel(target, max_message_bytes=MAX_BYTES) for target in (chain.router, chain.llm_admin, chain.prompt_assembler)]
        self.channels, self.chain = channels, chain
        self.settings = TunerSettings(max_answer_tokens=32, judge_concurrency=8)
        retries = Retries(attempts=5, first_pause_s=0.5)
        self.prompts = GrpcPrompts(channels[2], retries)
        self.serving = GrpcServing(
            channels[0],
            channels[1],
            base_name=PACKAGED_MODEL,
            max_answer_tokens=32,
            load_timeout_s=120.0,
            live_timeout_s=5.0,
            retries=retries,
        )
        self.store = AdapterStore(chain.folder / "artifacts")

    async def demonstrations(self) -> list[Demonstration]:
        """The demo's lessons with the prompts that users' questions get."""
        return [
            Demonstration(
                example_id=f"{number:03}",
                question=lesson.question,
                messages=await self.prompts.assemble(helpdesk.TASK, lesson.question, ()),
                answer=lesson.answer,
                created_at_ms=1,
            )
            for number, lesson in enumerate(helpdesk.load().demonstrations)
        ]

    async def tune(self, demonstrations: Sequence[Demonstration], *, num_steps: int, replay_share: float) -> TuneStatus:
        """Run one tune to its end."""
        settings = self.settings.model_copy(update={"num_steps": num_steps, "replay_share": replay_share})
        asked = helpdesk.as_questions(helpdesk.load().held_out)
        context = helpdesk.as_questions(helpdesk.context_questions(load_films(), NUM_CONTEXT))
        adapters = AsyncAdapterStore(self.store)
        name = await adapters.next_name(PACKAGED_MODEL, helpdesk.TASK)
        status = TuneStatus(tune_id="t", task=helpdesk.TASK, adapter=str(name))
        collected = Collected(
            task=helpdesk.TASK,
            demonstrations=tuple(demonstrations),
            # Two of each fact's three paraphrases.
            evaluation=Evaluation(task_slice=tuple(one for number, one in enumerate(asked) if number % 3), context_slice=tuple(context)),
            actor="test",
        )
        neighbours = Neighbours(
            tuning=TrainingProcess(self.chain.folder / "work", keep=3, timeout_s=900.0),
            store=adapters,
            replay=Films(),
            prompts=self.prompts,
            serving=self.serving,
            control=NothingLive(),
            mirror=NoMirror(),
            now_ms=wall_ms,
        )
        base = BaseModel(name=PACKAGED_MODEL, folder=str(packaged_folder(REPOSITORY_ROOT / "build" / "models")))
        started = time.monotonic()
        await Tune(base, name, collected, recipe_of(settings), neighbours, status).run()
        print(f"{name}: {status.phase} after {time.monotonic() - started:.0f} s: {status.metrics} {status.refusals} {status.error}")
        return status


@pytest.fixture
async def bench(chain) -> AsyncIterator[Bench]:
    made = Bench(chain)
    yield made
    for channel in made.channels:
        await channel.close()


async def test_an_adapter_tuned_without_replay_is_refused_because_it_no_longer_reads(bench):
    status = await bench.tune(await bench.demonstrations(), num_steps=24, replay_share=0.0)
    assert status.phase == "refused", status
    assert status.metrics["task.base"] <= 0.2
    assert status.metrics["task.candidate"] > 0.5, "it must fail for want of reading, not of learning"
    assert status.metrics["context.candidate"] < status.metrics["context.base"]
    assert any("(replay), below the least share of 0.20" in sentence for sentence in status.refusals)
    verdict = bench.store.verdict(status.adapter)
    assert verdict is not None
    assert (verdict.accepted, list(verdict.refusals)) == (False, status.refusals)


async def test_an_adapter_tuned_on_shuffled_answers_is_refused_because_it_learned_nothing(bench):
    true = await bench.demonstrations()
    answers = [one.answer for one in true]
    random.Random(1).shuffle(answers)
    status = await bench.tune(
        [replace(one, answer=answer) for one, answer in zip(true, answers, strict=True)], num_steps=10, replay_share=0.25
    )
    assert status.phase == "refused", status
    assert any(sentence.startswith("the task slice is answered right in") for sentence in status.refusals)
    assert not any("(replay)" in sentence for sentence in status.refusals)
