"""Runs the feature stream: `python -m streams.features`. Configuration: streams/features/settings.py."""

from __future__ import annotations

import logging
import sys

from services.common.platform import telemetry
from services.common.platform.errors import Unavailable
from services.common.platform.grpc_server import serve
from services.common.platform.settings import load_settings, redacted, run_main
from streams.features.app import FeatureStream
from streams.features.settings import FeaturesSettings


async def _main() -> None:
    settings = load_settings(FeaturesSettings)
    recorder = telemetry.configure("features", settings)
    logging.getLogger(__name__).info("settings: %s", redacted(settings))
    stream = FeatureStream(settings, recorder)
    await serve([], settings, recorder, main=stream.run, on_drain=stream.stop, serving=False)


if __name__ == "__main__":
    try:
        run_main(_main)
    except Unavailable as unavailable:
        sys.exit(f"features: {unavailable}")
