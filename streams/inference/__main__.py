"""Runs the asynchronous door: `python -m streams.inference`. Configuration: streams/inference/settings.py."""

from __future__ import annotations

import logging
import sys

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import serve
from services.common.platform.settings import load_settings, redacted, run_main
from streams.inference.app import InferenceDoor
from streams.inference.settings import InferenceSettings


async def _main() -> None:
    settings = load_settings(InferenceSettings)
    recorder = telemetry.configure("inference", settings)
    logging.getLogger(__name__).info("settings: %s", redacted(settings))
    door = InferenceDoor(settings, recorder)
    await serve([], settings, recorder, main=door.run, on_drain=door.stop, serving=False)


if __name__ == "__main__":
    try:
        run_main(_main)
    except Unavailable as unavailable:
        sys.exit(f"inference: {unavailable}")
