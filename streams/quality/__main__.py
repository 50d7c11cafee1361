"""Runs the quality stream: `python -m streams.quality`. Configuration: streams/quality/settings.py."""

from streams.process import run_stream
from streams.quality.app import QualityStream
from streams.quality.settings import QualitySettings

if __name__ == "__main__":
    run_stream("quality", QualitySettings, QualityStream)
