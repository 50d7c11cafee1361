"""Runs the curator: `python -m streams.curator`. Configuration: streams/curator/settings.py."""

from streams.curator.app import Curator
from streams.curator.settings import CuratorSettings
from streams.process import run_stream

if __name__ == "__main__":
    run_stream("curator", CuratorSettings, lambda settings, telemetry: Curator(settings, telemetry).app)
