"""The prompt assembler's only wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc

from services.common.events.topics import CONTROL
from services.common.language.aliases import AliasView
from services.common.language.base_model import resolve
from services.common.platform.errors import ConfigurationError
from services.common.platform.grpc_server import GrpcServer, Servicer, serve
from services.common.platform.settings import redacted, variable_of
from services.common.platform.stores import NoSuchStore
from services.common.platform.telemetry import Telemetry, configure
from services.common.platform.topic_follower import TopicFollower
from services.prompt_assembler.core.assembler import Assembler, Labels
from services.prompt_assembler.core.prompt import TokenCounter
from services.prompt_assembler.labels import AliasLabels
from services.prompt_assembler.served_tokens import ServedTokens
from services.prompt_assembler.servicer import PromptAssemblerServicer
from services.prompt_assembler.settings import PromptAssemblerSettings
from services.prompt_assembler.store import FileTemplateStore, load_built_in
from services.prompt_assembler.tokens import LateTokens

SERVICE = "prompt_assembler"
# How long the start waits for the labels: within it the first answers are those of the right version.
_LABELS_WAIT_S = 5.0

_log = logging.getLogger(__name__)


def make_assembler(settings: PromptAssemblerSettings, labels: Labels, counter: TokenCounter) -> Assembler:
    """Return the core over the real store.

    Raises:
        ConfigurationError: a built-in template cannot be used, or the artifacts' URL is of an unknown kind.
    """
    try:
        store = FileTemplateStore(
            settings.artifacts_url, load_built_in(), check_s=settings.store_check_ms / 1e3, monotonic_s=time.monotonic
        )
    except NoSuchStore as error:
        raise ConfigurationError(f"{variable_of(settings, 'artifacts_url')}={settings.artifacts_url}: {error}") from error
    return Assembler(store, labels, counter, max_versions=settings.max_versions)


def servicer_of(assembler: Assembler, signals: Telemetry) -> Servicer:
    """Return what the gRPC server serves."""
    return Servicer(
        descriptor=prompt_assembler_service_pb2.DESCRIPTOR.services_by_name["PromptAssemblerService"],
        implementation=PromptAssemblerServicer(assembler, signals.meter),
        register=prompt_assembler_service_pb2_grpc.add_PromptAssemblerServiceServicer_to_server,
    )


def tokenizer_file(settings: PromptAssemblerSettings) -> Path | None:
    """Return the served model's tokenizer.json; None while there is none."""
    if settings.tokenizer_path is not None:
        return settings.tokenizer_path if settings.tokenizer_path.is_file() else None
    try:
        return resolve(settings.llm_model, settings.models_dir).tokenizer_file
    except ConfigurationError:
        # Not converted yet: looked for again.
        return None


async def run(settings: PromptAssemblerSettings) -> None:
    """Serve until SIGTERM. While Kafka is down the last known labels hold; were they never known, the newest versions answer.

    Raises:
        ConfigurationError: a template, a folder or the port is wrong.
    """
    aliases = AliasView()
    served = ServedTokens(settings.llm_target) if settings.llm_target else None
    tokens = LateTokens(lambda: tokenizer_file(settings), served)
    assembler = make_assembler(settings, AliasLabels(aliases), tokens)
    signals = configure(SERVICE, settings)
    _log.info("settings: %s", redacted(settings))
    follower = TopicFollower(settings.kafka_bootstrap_servers, CONTROL.name, aliases, client_id=SERVICE, fetch_wait_ms=200)

    async def background(server: GrpcServer) -> None:
        follower.start()
        is_there = await asyncio.to_thread(tokens.look)
        if not await asyncio.to_thread(follower.wait_ready, _LABELS_WAIT_S):
            _log.warning("control.v1 was not read in %.0f s: the newest versions answer until it is", _LABELS_WAIT_S)
        await server.set_serving(True)
        if not is_there:
            counted = f"counted by the llm at {settings.llm_target}" if settings.llm_target else "bounded by bytes"
            _log.warning("no tokenizer of %s yet: tokens are %s until there is one", settings.llm_model, counted)
        while not await asyncio.to_thread(tokens.look):
            await asyncio.sleep(settings.tokenizer_check_ms / 1e3)
        await asyncio.Event().wait()

    async def close() -> None:
        await asyncio.to_thread(follower.stop)
        if served is not None:
            served.close()

    await serve([servicer_of(assembler, signals)], settings, signals, on_drain=close, main=background, serving=False)
