"""Runs the joiner: `python -m streams.joiner`. Configuration: streams/joiner/settings.py."""

from streams.joiner.app import Joiner
from streams.joiner.settings import JoinerSettings
from streams.process import run_stream

if __name__ == "__main__":
    run_stream("joiner", JoinerSettings, lambda settings, telemetry: Joiner(settings, telemetry).app)
