"""The tuner's only wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

import grpc.aio
from opentelemetry.metrics import Meter
from tunemesh.trainer.v1 import tuner_service_pb2, tuner_service_pb2_grpc

from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.topics import CONTROL, LLM_EXAMPLES
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import AliasView
from services.common.language.base_model import BaseModel, resolve
from services.common.language.lora_store import AdapterStore
from services.common.platform import telemetry
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ServiceError
from services.common.platform.grpc_client import open_channel
from services.common.platform.grpc_server import GrpcServer, Servicer, serve
from services.common.platform.ids import uuid7
from services.common.platform.settings import redacted
from services.common.platform.topic_follower import TopicFollower
from services.tuner import job as jobs
from services.tuner.adapter_gate import AdapterGateLimits
from services.tuner.async_adapter_store import AsyncAdapterStore
from services.tuner.catalogue_replay import CatalogueReplay
from services.tuner.evaluation_folder import EvaluationFolder
from services.tuner.examples import ExampleBook, TuneRules
from services.tuner.grpc_calls import Retries
from services.tuner.grpc_control import GrpcControl
from services.tuner.grpc_prompts import GrpcPrompts
from services.tuner.grpc_serving import GrpcServing
from services.tuner.job import HyperParameters
from services.tuner.judgement import JudgeRules
from services.tuner.kafka_examples import Examples
from services.tuner.mirror import Mirror, NoMirror, Reconciler
from services.tuner.mlflow_registry import MlflowRegistry
from services.tuner.neighbours import Neighbours
from services.tuner.servicer import TunerServicer
from services.tuner.settings import TunerSettings
from services.tuner.training_process import TrainingProcess
from services.tuner.tune import Recipe
from services.tuner.tune_status import TuneStatus
from services.tuner.tuner import Sources, Tuner

SERVICE = "tuner"

_FIRST_PAUSE_S = 0.5
_EXAMPLES_WAIT_MS = 500
_CONTROL_WAIT_MS = 500

_log = logging.getLogger(__name__)


def recipe_of(settings: TunerSettings) -> Recipe:
    """Return what the settings say about tunes."""
    hyper = HyperParameters(
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        target_modules=tuple(name.strip() for name in settings.lora_modules.split(",") if name.strip()),
        learning_rate=settings.learning_rate,
        num_steps=settings.min_steps,
        warm_up_steps=settings.warm_up_steps,
        batch_size=settings.batch_size,
        max_tokens=settings.max_example_tokens,
        dtype=settings.train_dtype,
        num_threads=settings.train_threads,
        seed=settings.seed,
    )
    limits = AdapterGateLimits(
        min_task_right=settings.min_task_right,
        task_margin=settings.task_margin,
        context_margin=settings.context_margin,
        general_margin=settings.general_margin,
        safety_margin=settings.safety_margin,
        likelihood_margin=settings.likelihood_margin,
        false_accept=settings.false_accept,
        false_refuse=settings.false_refuse,
        min_replay_share=settings.min_replay_share,
        max_update_norm=settings.max_update_norm,
        first_questions=settings.first_questions,
        max_questions=settings.max_questions,
    )
    return Recipe(
        hyper=hyper,
        num_passes=settings.num_passes,
        min_steps=settings.num_steps or settings.min_steps,
        max_steps=settings.num_steps or max(settings.min_steps, settings.max_steps),
        replay_share=settings.replay_share,
        replay_examples=settings.replay_examples,
        concurrency=settings.concurrency,
        judging=JudgeRules(limits=limits, concurrency=settings.judge_concurrency),
    )


class Clients:
    """The channels of this process, and what is made of them. Must be made on the event loop."""

    def __init__(self, settings: TunerSettings, base: BaseModel) -> None:
        """Connects lazily."""
        targets = (settings.router_target, settings.llm_admin_target, settings.prompt_assembler_target, settings.trainer_target)
        size = settings.max_message_bytes
        self._channels: Sequence[grpc.aio.Channel] = [open_channel(target, max_message_bytes=size) for target in targets]
        router, llm_admin, prompt_assembler, trainer = self._channels
        retries = Retries(attempts=settings.call_attempts, first_pause_s=_FIRST_PAUSE_S)
        self.serving = GrpcServing(
            router,
            llm_admin,
            base_name=base.name,
            max_answer_tokens=settings.max_answer_tokens,
            load_timeout_s=settings.load_timeout_ms / 1e3,
            live_timeout_s=settings.live_timeout_ms / 1e3,
            retries=retries,
        )
        self.prompts = GrpcPrompts(prompt_assembler, retries)
        self.control = GrpcControl(trainer, actor=f"tuner/{os.uname().nodename}/{os.getpid()}", retries=retries)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()


def make_mirror(
    settings: TunerSettings, base: BaseModel, store: AdapterStore, aliases: AliasView, training: TrainingProcess
) -> Mirror | NoMirror:
    """Return the mirror to the MLflow of the settings."""
    if not settings.mlflow_tracking_uri:
        _log.info("no MLflow is set: nothing is mirrored")
        return NoMirror()
    registry = MlflowRegistry(settings.mlflow_tracking_uri.get_secret_value())

    def losses(name: AdapterName) -> list[jobs.Step]:
        return jobs.read_steps(training.folder(name))

    reconciler = Reconciler(base.name, store, registry, aliases=aliases.all, losses=losses)
    return Mirror(reconciler, registry, retry_s=settings.mlflow_retry_ms / 1e3)


async def start_when_due(tuner: Tuner, interval_s: float) -> None:
    """Begin automatic tunes until cancelled; what keeps one from beginning is logged when it changes."""
    said = ""
    while True:
        try:
            await tuner.start_due()
            said = ""
        except ServiceError as error:
            if str(error) != said:
                said = str(error)
                _log.warning("no tune can begin: %s", said)
        await asyncio.sleep(interval_s)


def servicer_of(tuner: Tuner, live_target: Callable[[str], str | None]) -> Servicer:
    """Return what the gRPC server serves. `live_target`: see TunerServicer."""
    return Servicer(
        descriptor=tuner_service_pb2.DESCRIPTOR.services_by_name["TunerService"],
        implementation=TunerServicer(tuner, live_target=live_target),
        register=tuner_service_pb2_grpc.add_TunerServiceServicer_to_server,
    )


class Parts:
    """Everything that the process is made of. Must be made on the event loop; nothing is connected before `work`."""

    def __init__(self, settings: TunerSettings, meter: Meter) -> None:
        """Wire.

        Raises:
            ConfigurationError: the base model is not there.
        """
        self._settings = settings
        base = resolve(settings.llm_model, settings.models_dir)
        store = AdapterStore(settings.artifacts_url)
        training = TrainingProcess(settings.work_dir, keep=settings.keep_trainings, timeout_s=settings.train_timeout_ms / 1e3)
        self._letters = dead_letter_writer(
            settings.kafka_bootstrap_servers, LLM_EXAMPLES, source=f"/tunemesh/{SERVICE}", compression=settings.kafka_compression
        )
        book = ExampleBook(max_per_task=settings.max_demonstrations, max_tasks=settings.max_tasks)
        examples = Examples(book, on_refused=self._letters.set_aside)
        self.aliases = AliasView(on_change=lambda: self._mirror.changed())
        self._mirror = make_mirror(settings, base, store, self.aliases, training)
        self._clients = Clients(settings, base)
        self.tuner = self._make_tuner(base, store, training, examples, meter)
        bootstrap = settings.kafka_bootstrap_servers
        self._followers = [
            TopicFollower(bootstrap, LLM_EXAMPLES.name, examples, client_id=SERVICE, fetch_wait_ms=_EXAMPLES_WAIT_MS),
            TopicFollower(bootstrap, CONTROL.name, self.aliases, client_id=SERVICE, fetch_wait_ms=_CONTROL_WAIT_MS),
        ]

    def _make_tuner(self, base: BaseModel, store: AdapterStore, training: TrainingProcess, examples: Examples, meter: Meter) -> Tuner:
        settings, clients, adapters = self._settings, self._clients, AsyncAdapterStore(store)
        replay = CatalogueReplay(
            settings.kafka_bootstrap_servers,
            client_id=SERVICE,
            folder=settings.evaluations_dir,
            file=settings.replay_file,
            max_items=settings.max_catalog_items,
        )
        neighbours = Neighbours(
            tuning=training,
            store=adapters,
            replay=replay,
            prompts=clients.prompts,
            serving=clients.serving,
            control=clients.control,
            mirror=self._mirror,
            now_ms=wall_ms,
        )
        outcomes = meter.create_counter(
            "tuner.tunes", description="Tunes and judgements by how they ended: live, refused, undecided or failed."
        )

        def note_end(status: TuneStatus) -> None:
            outcomes.add(1, {"outcome": status.phase})

        return Tuner(
            base,
            Sources(examples=examples, evaluations=EvaluationFolder(settings.evaluations_dir), history=adapters, learning=clients.control),
            neighbours,
            recipe_of(settings),
            TuneRules(
                min_demonstrations=settings.min_demonstrations,
                min_new_demonstrations=settings.min_new_demonstrations,
                failed_retry_ms=settings.failed_retry_ms,
                max_user_share=settings.max_user_share,
            ),
            new_id=uuid7,
            on_end=note_end,
        )

    async def work(self, _: GrpcServer) -> None:
        """Follow the topics, mirror to MLflow and begin what is due, until cancelled."""
        for follower in self._followers:
            follower.start()
        tasks = [asyncio.create_task(self._mirror.run())]
        if self._settings.auto:
            tasks.append(asyncio.create_task(start_when_due(self.tuner, self._settings.check_interval_ms / 1e3)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self) -> None:
        """End the tune that runs, the followers and the channels."""
        await self.tuner.stop()
        for follower in self._followers:
            await asyncio.to_thread(follower.stop)
        await asyncio.to_thread(self._letters.close)
        await self._clients.close()


async def run(settings: TunerSettings) -> None:
    """Serve until SIGTERM. Kafka and every other service may be down: a tune that needs them then fails, and says so.

    Raises:
        ConfigurationError: the base model is not there, the telemetry folder cannot be written, or the port is taken.
    """
    signals = telemetry.configure(SERVICE, settings)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    _log.info("settings: %s", redacted(settings))
    parts = Parts(settings, signals.meter)
    servicer = servicer_of(parts.tuner, parts.aliases.target)
    await serve([servicer], settings, signals, on_drain=parts.stop, main=parts.work)
