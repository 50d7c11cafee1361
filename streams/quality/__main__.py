"""`python -m streams.quality`: windows over the mesh's topics -> quality.v1 and Prometheus metrics."""

from __future__ import annotations

import logging

from services.common.platform import telemetry
from services.common.platform.grpc_server import serve
from services.common.platform.settings import load_settings, redacted, run_main
from streams.quality.app import QualityStream
from streams.quality.settings import QualitySettings


async def _main() -> None:
    settings = load_settings(QualitySettings)
    recorder = telemetry.configure("quality", settings)
    logging.getLogger(__name__).info("settings: %s", redacted(settings))
    stream = QualityStream(settings, recorder)
    await serve([], settings, recorder, main=stream.run, on_drain=stream.stop, serving=False)


if __name__ == "__main__":
    run_main(_main)
