"""The start of a stream's process: its settings, its telemetry, its health server."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import GrpcServer, serve
from services.common.platform.settings import BaseServiceSettings, load_settings, process_redactor, redacted, run_main

SettingsT = TypeVar("SettingsT", bound=BaseServiceSettings)


class Stream(Protocol):
    """The whole work of a stream's process."""

    async def run(self, server: GrpcServer) -> None:
        """Work until cancelled."""
        ...

    async def stop(self) -> None:
        """Close what `run` opened."""
        ...


def run_stream(name: str, settings_class: type[SettingsT], new_stream: Callable[[SettingsT, telemetry.Telemetry], Stream]) -> None:
    """Run a stream until SIGTERM, and end the process with one line when its settings are wrong or what it needs is not there.

    Args:
        name: under which it logs and records.
        settings_class: read from the environment.
        new_stream: called on the event loop.
    """

    async def main() -> None:
        settings = load_settings(settings_class)
        recorder = telemetry.configure(name, settings)
        logging.getLogger(__name__).info("settings: %s", redacted(settings))
        stream = new_stream(settings, recorder)
        await serve([], settings, recorder, main=stream.run, on_drain=stream.stop, serving=False)

    try:
        run_main(main)
    except Unavailable as unavailable:
        sys.exit(f"{name}: {process_redactor()(str(unavailable))}")
