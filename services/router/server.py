"""The router's only wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.topics import CONTROL
from services.common.language.aliases import AliasView
from services.common.platform import grpc_server, telemetry
from services.common.platform.clock import wall_ms
from services.common.platform.ids import uuid7
from services.common.platform.kafka_async import AsyncProducer
from services.common.platform.settings import redacted, variable_of
from services.common.platform.topic_follower import TopicFollower
from services.router.admission import Admission, AdmissionLimits
from services.router.answer_clients import GrpcLanguageModel, GrpcPromptAssembler, GrpcRetriever, LiveAdapters
from services.router.core import ExposureLog, Limits, RecentAnswers, Recommender, Router
from services.router.degraded_answers import DegradedAnswers
from services.router.event_log import KafkaEventLog
from services.router.generation import Adapters, GenerationLog, LanguageModel, PromptAssembler, Retriever
from services.router.generator import GenerationLimits, Generator
from services.router.grpc_recommender import GrpcRecommender
from services.router.records import Exposures, Generations
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings
from services.router.spool import Spool

SERVICE = "router"
# An alias that moved is answered with this much later at most.
_ALIAS_FETCH_WAIT_MS = 200
_FOLLOWER_STOP_S = 1.0

_log = logging.getLogger(__name__)


def make_admission(settings: RouterSettings) -> Admission:
    """Return the adaptive limit on Recommend."""
    limits = AdmissionLimits(least=settings.least_concurrent, most=settings.most_concurrent, latency_share=settings.latency_share)
    return Admission(limits, time.monotonic)


def make_router(settings: RouterSettings, recommender: Recommender, exposures: ExposureLog, admission: Admission) -> Router:
    """Return the core with the real clocks and ids."""
    limits = Limits(
        max_candidates=settings.max_candidates,
        default_limit=settings.default_limit,
        default_deadline_s=settings.default_deadline_ms / 1e3,
        max_deadline_s=settings.max_deadline_ms / 1e3,
    )
    return Router(
        recommender,
        exposures,
        RecentAnswers(ttl_s=settings.idempotency_ttl_ms / 1e3, max_entries=settings.idempotency_max_entries),
        admission,
        limits=limits,
        variant=settings.variant,
        monotonic_s=time.monotonic,
        wall_ms=wall_ms,
        new_request_id=uuid7,
    )


def make_generator(
    settings: RouterSettings,
    retriever: Retriever,
    assembler: PromptAssembler,
    model: LanguageModel,
    adapters: Adapters,
    generations: GenerationLog,
) -> Generator:
    """Return the core of Generate with the real clocks and ids."""
    limits = GenerationLimits(
        default_deadline_s=settings.generate_default_deadline_ms / 1e3,
        max_deadline_s=settings.generate_max_deadline_ms / 1e3,
        retriever_timeout_s=settings.retriever_timeout_ms / 1e3,
        prompt_assembler_timeout_s=settings.prompt_assembler_timeout_ms / 1e3,
        llm_reconnect_s=settings.llm_reconnect_ms / 1e3,
        max_tokens=settings.generate_max_tokens,
        num_passages=settings.retriever_passages,
    )
    return Generator(
        retriever,
        assembler,
        model,
        adapters,
        generations,
        limits=limits,
        variant=settings.variant,
        monotonic_s=time.monotonic,
        wall_ms=wall_ms,
        new_request_id=uuid7,
    )


def observe_admission(meter: Meter, admission: Admission) -> None:
    """Record how many Recommends are under way, how many may be, and how many were refused."""

    def running(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(admission.running)]

    def limit(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(admission.limit)]

    def refused(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(admission.num_refused)]

    meter.create_observable_gauge("router.recommend.running", [running], description="Recommends under way.")
    meter.create_observable_gauge("router.recommend.limit", [limit], description="Recommends that may be under way.")
    meter.create_observable_counter("router.recommend.shed", [refused], description="Recommends refused to keep others in time.")


class AnswerClients:
    """The channels that Generate uses; made on the event loop that uses them."""

    def __init__(self, settings: RouterSettings) -> None:
        """Connects lazily."""
        limit = settings.max_message_bytes
        self.retriever = GrpcRetriever(settings.retriever_target, max_message_bytes=limit)
        self.assembler = GrpcPromptAssembler(settings.prompt_assembler_target, max_message_bytes=limit)
        self.model = GrpcLanguageModel(settings.llm_target, max_message_bytes=limit)

    def generator(self, settings: RouterSettings, adapters: Adapters, generations: GenerationLog) -> Generator:
        """Return the core of Generate over these channels."""
        return make_generator(settings, self.retriever, self.assembler, self.model, adapters, generations)

    async def close(self) -> None:
        """Close the channels."""
        for client in (self.retriever, self.assembler, self.model):
            await client.close()


def servicer_of(router: Router, generator: Generator, signals: telemetry.Telemetry) -> grpc_server.Servicer:
    """Return what the gRPC server serves."""
    return grpc_server.Servicer(
        descriptor=router_service_pb2.DESCRIPTOR.services_by_name["RouterService"],
        implementation=RouterServicer(router, generator, DegradedAnswers(signals), signals.meter),
        register=router_service_pb2_grpc.add_RouterServiceServicer_to_server,
    )


async def run(settings: RouterSettings) -> None:
    """Serve until SIGTERM. Kafka may be down: what is logged then waits on disk, and aliases stay as they are known.

    Raises:
        ConfigurationError: a folder cannot be written, or the port is taken.
    """
    signals = telemetry.configure(SERVICE, settings)
    _log.info("settings: %s", redacted(settings))
    spool = Spool(settings.spool_dir, max_bytes=settings.spool_max_bytes, variable=variable_of(settings, "spool_dir"))
    producer = AsyncProducer(
        settings.kafka_bootstrap_servers,
        client_id=SERVICE,
        delivery_timeout_ms=settings.delivery_timeout_ms,
        compression=settings.kafka_compression,
    )
    events = KafkaEventLog(
        producer, spool, max_buffered=settings.exposure_buffer, flush_interval_ms=settings.flush_interval_ms, telemetry=signals
    )
    recommender = GrpcRecommender(settings.recommender_target, max_message_bytes=settings.max_message_bytes)
    clients = AnswerClients(settings)
    letters = dead_letter_writer(
        settings.kafka_bootstrap_servers, CONTROL, source=f"/tunemesh/{SERVICE}", compression=settings.kafka_compression
    )
    aliases = AliasView(on_refused=letters.set_aside)
    follower = TopicFollower(settings.kafka_bootstrap_servers, CONTROL.name, aliases, client_id=SERVICE, fetch_wait_ms=_ALIAS_FETCH_WAIT_MS)
    follower.start()
    await producer.start(wait_s=1.0)
    events.start()

    async def on_drain() -> None:
        await events.close()
        await producer.stop()
        await recommender.close()
        await clients.close()
        await asyncio.to_thread(follower.stop, _FOLLOWER_STOP_S)
        await asyncio.to_thread(letters.close)

    admission = make_admission(settings)
    observe_admission(signals.meter, admission)
    router = make_router(settings, recommender, Exposures(events), admission)
    generator = clients.generator(settings, LiveAdapters(aliases), Generations(events))
    servicer = servicer_of(router, generator, signals)
    await grpc_server.serve([servicer], settings, signals, on_drain=on_drain, main=lambda _: events.watch())
