"""Runs the curator: `python -m streams.curator`. Configuration: streams/curator/settings.py."""

from __future__ import annotations

import logging
import sys

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import serve
from services.common.platform.settings import load_settings, redacted, run_main
from streams.curator.app import Curator
from streams.curator.settings import CuratorSettings


async def _main() -> None:
    settings = load_settings(CuratorSettings)
    recorder = telemetry.configure("curator", settings)
    logging.getLogger(__name__).info("settings: %s", redacted(settings))
    curator = Curator(settings, recorder)
    await serve([], settings, recorder, main=curator.run, on_drain=curator.stop, serving=False)


if __name__ == "__main__":
    try:
        run_main(_main)
    except Unavailable as unavailable:
        sys.exit(f"curator: {unavailable}")
