"""Runs the asynchronous door: `python -m streams.inference`. Configuration: streams/inference/settings.py."""

from streams.inference.app import InferenceDoor
from streams.inference.settings import InferenceSettings
from streams.process import run_stream

if __name__ == "__main__":
    run_stream("inference", InferenceSettings, InferenceDoor)
