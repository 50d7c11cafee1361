"""Runs the joiner: `python -m streams.joiner`. Configuration: streams/joiner/settings.py."""

from __future__ import annotations

import logging
import sys

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import serve
from services.common.platform.settings import load_settings, redacted, run_main
from streams.joiner.app import Joiner
from streams.joiner.settings import JoinerSettings


async def _main() -> None:
    settings = load_settings(JoinerSettings)
    recorder = telemetry.configure("joiner", settings)
    logging.getLogger(__name__).info("settings: %s", redacted(settings))
    joiner = Joiner(settings, recorder)
    await serve([], settings, recorder, main=joiner.run, on_drain=joiner.stop, serving=False)


if __name__ == "__main__":
    try:
        run_main(_main)
    except Unavailable as unavailable:
        sys.exit(f"joiner: {unavailable}")
