"""Runs the feature stream: `python -m streams.features`. Configuration: streams/features/settings.py."""

from streams.features.app import FeatureStream
from streams.features.settings import FeaturesSettings
from streams.process import run_stream

if __name__ == "__main__":
    run_stream("features", FeaturesSettings, FeatureStream)
