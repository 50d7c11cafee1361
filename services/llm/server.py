"""The llm service's only wiring: settings -> engine, store, follower -> core -> servicers.

Both ports are bound before the model is loaded: health says NOT_SERVING until the engine has answered, and a taken port is known at once.
The process ends when the engine dies, so that whoever runs it starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tunemesh.llm.v1 import (
    llm_admin_service_pb2,
    llm_admin_service_pb2_grpc,
    llm_service_pb2,
    llm_service_pb2_grpc,
)

from services.common.events.topics import CONTROL
from services.common.language.aliases import AliasView
from services.common.language.base_model import BaseModel, base_hash, resolve
from services.common.language.lora_store import AdapterStore
from services.common.platform import grpc_server, telemetry
from services.common.platform.errors import ConfigurationError, InvalidInput
from services.common.platform.settings import redacted
from services.common.platform.topic_follower import TopicFollower
from services.llm.adapter_pool import AdapterPool
from services.llm.admin_servicer import LlmAdminServicer
from services.llm.core.generation import Generator, Limits
from services.llm.core.slots import Slots
from services.llm.engine import EngineFailed, EngineOptions, VllmEngine
from services.llm.servicer import LlmServicer
from services.llm.settings import AdminSettings, LlmSettings

SERVICE = "llm"

_log = logging.getLogger(__name__)


class EngineDied(Exception):
    """The engine is gone, and this process with it."""


def engine_options(settings: LlmSettings, base: BaseModel) -> EngineOptions:
    """Return what vLLM is started with."""
    return EngineOptions(
        model=base.folder,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        enforce_eager=settings.enforce_eager,
        cpu_threads=settings.cpu_threads,
        max_loras=settings.max_loras,
        max_cpu_loras=settings.max_cpu_loras,
        max_lora_rank=settings.max_lora_rank,
        adapter_timeout_s=settings.adapter_timeout_ms / 1e3,
    )


def limits_of(settings: LlmSettings) -> Limits:
    """Return the bounds of requests."""
    return Limits(
        max_prompt_bytes=settings.max_prompt_bytes,
        max_tokens=settings.max_tokens,
        default_max_tokens=settings.default_max_tokens,
        max_running=settings.max_num_seqs + settings.max_waiting,
    )


def servicer_of(implementation: LlmServicer) -> grpc_server.Servicer:
    """Return what the public gRPC server serves."""
    return grpc_server.Servicer(
        descriptor=llm_service_pb2.DESCRIPTOR.services_by_name["LlmService"],
        implementation=implementation,
        register=llm_service_pb2_grpc.add_LlmServiceServicer_to_server,
    )


def admin_servicer_of(implementation: LlmAdminServicer) -> grpc_server.Servicer:
    """Return what the private gRPC server serves."""
    return grpc_server.Servicer(
        descriptor=llm_admin_service_pb2.DESCRIPTOR.services_by_name["LlmAdminService"],
        implementation=implementation,
        register=llm_admin_service_pb2_grpc.add_LlmAdminServiceServicer_to_server,
    )


class Process:
    """What lives as long as the process: engine, pool, follower and the admin server."""

    def __init__(self, settings: LlmSettings, base: BaseModel, signals: telemetry.Telemetry) -> None:
        """Nothing is started before `work`."""
        self._settings, self._base = settings, base
        self.servicer = LlmServicer(signals.meter)
        self._admin = LlmAdminServicer(signals.meter)
        self._admin_server = grpc_server.GrpcServer(AdminSettings.of(settings), signals, [admin_servicer_of(self._admin)])
        self._engine: VllmEngine | None = None
        self._pool: AdapterPool | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._aliases = AliasView(on_change=self._on_change)
        self._follower = TopicFollower(settings.kafka_bootstrap_servers, CONTROL.name, self._aliases, client_id=SERVICE, fetch_wait_ms=200)

    async def work(self, server: grpc_server.GrpcServer) -> None:
        """Start everything, say SERVING, and watch the engine.

        Raises:
            ConfigurationError: the admin port is taken, or the model cannot be served.
            EngineDied: the engine did not start, or died.
        """
        settings = self._settings
        admin_port = await self._admin_server.start(serving=False)
        _log.info("the adapter API listens on %s:%d", settings.admin_host, admin_port)
        self._follower.start()
        engine = self._engine = await self._start_engine()
        pool = self._pool = self._make_pool(engine)
        generator = Generator(engine, pool, base_model=self._base.name, limits=limits_of(settings))
        self.servicer.attach(generator)
        if await asyncio.to_thread(self._follower.wait_ready, settings.alias_wait_ms / 1e3):
            await pool.remove_leftovers(self._targets())
        else:
            _log.warning("control.v1 cannot be read yet: the base serves, adapters follow once it can")
        self._admin.attach(pool, generator, base_hash=await asyncio.to_thread(base_hash, self._base.folder))
        keeping_up = await self._start_keeping_up(pool)
        death = asyncio.ensure_future(
            engine.until_dead(interval_s=settings.probe_interval_ms / 1e3, timeout_s=settings.probe_timeout_ms / 1e3)
        )
        try:
            await self._admin_server.set_serving(True)
            await server.set_serving(True)
            _log.info("the model answers: SERVING")
            await asyncio.wait({death, keeping_up}, return_when=asyncio.FIRST_COMPLETED)
            await server.set_serving(False)
            if keeping_up.done():
                keeping_up.result()
            raise EngineDied(death.result())
        finally:
            death.cancel()
            keeping_up.cancel()

    async def stop(self) -> None:
        """End what `work` started; the last call has ended."""
        await self._admin_server.drain()
        await asyncio.to_thread(self._follower.stop)
        if self._pool is not None:
            await self._pool.close()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    async def _start_engine(self) -> VllmEngine:
        try:
            return await VllmEngine.start(engine_options(self._settings, self._base))
        except InvalidInput as error:
            raise ConfigurationError(f"TUNEMESH_LLM_MODEL={self._settings.llm_model} cannot chat: {error}") from error
        except EngineFailed as error:
            raise EngineDied(f"the engine did not start: {error}") from error

    def _make_pool(self, engine: VllmEngine) -> AdapterPool:
        settings = self._settings
        return AdapterPool(
            Slots(settings.max_cpu_loras),
            AdapterStore(settings.artifacts_url),
            engine,
            base_model=self._base.name,
            folder=settings.adapters_dir.absolute(),
            remove=_remove_folder,
        )

    async def _start_keeping_up(self, pool: AdapterPool) -> asyncio.Task[None]:
        """Begin to follow the aliases; return when what they want was tried once, or the wait is over."""
        first = asyncio.Event()
        task = asyncio.ensure_future(pool.keep_up(self._targets, self._changed, first))
        with suppress(TimeoutError):
            await asyncio.wait_for(first.wait(), self._settings.adapter_timeout_ms / 1e3)
        return task

    def _targets(self) -> Mapping[str, str]:
        return self._aliases.all()

    def _on_change(self) -> None:
        """In the follower's thread."""
        self._loop.call_soon_threadsafe(self._aliases_changed)

    def _aliases_changed(self) -> None:
        if self._pool is not None:
            # At once: a load that is under way must not evict what an alias has just been pointed at.
            self._pool.point(self._targets())
        self._changed.set()


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


async def run(settings: LlmSettings) -> None:
    """Serve until SIGTERM, or until the engine dies. Kafka may be down: the base then serves without adapters.

    Raises:
        ConfigurationError: the model is not there, a port is taken, or the telemetry folder cannot be written.
        SystemExit: the engine died; the log says why.
    """
    base = resolve(settings.llm_model, settings.models_dir)
    signals = telemetry.configure(SERVICE, settings)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    _log.info("settings: %s", redacted(settings))
    process = Process(settings, base, signals)
    try:
        await grpc_server.serve([servicer_of(process.servicer)], settings, signals, on_drain=process.stop, main=process.work, serving=False)
    except EngineDied as error:
        _log.error("the llm service stops: %s", error)
        raise SystemExit(1) from None
