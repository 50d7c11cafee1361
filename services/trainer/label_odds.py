"""How often each task's label is 1, by the events of a file: where a network that has learned nothing begins. Pure.

Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import Sample, TaskLabel

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import negative_labels
from services.common.ranker.states import Interaction
from services.trainer.event_samples import NUM_OTHERS, sample_of
from services.trainer.targets import weights

MAX_EVENTS = 50_000
"""Of more events, at most so many are counted, from all over the file: where one label in 500 is 1, the odds are within a tenth or so."""

# Half a sample of each kind, so that a label that never comes is rare and not impossible.
_PRIOR = 0.5


def log_odds(spec: FeatureSpec, events: Sequence[Interaction], num_items: int) -> npt.NDArray[np.float32]:
    """Return by task the log-odds of 1, float32 [T], with thinned negatives made up for; 0 for a task of which no sample says anything.

    Args:
        spec: the spec.
        events: in the order of time.
        num_items: of the catalogue that unanswered items are drawn from.
    """
    of_others_2T = _weights_of_others(spec, num_items)
    total_2T = np.zeros((2, len(spec.tasks)))
    for at in _counted(len(events)):
        total_2T += of_others_2T
        for sample in sample_of(spec, events[at], f"odds:{at}"):
            total_2T += weights(spec, sample)
    # Whatever is thinned among the samples, or weighed as if it were, there are so many of in truth.
    kept_T = [spec.negatives.keep_rate if task.unanswered is not None else 1.0 for task in spec.tasks]
    ones_T, zeros_T = total_2T / [np.ones(len(kept_T)), kept_T]
    odds_T = np.log((ones_T + _PRIOR) / (zeros_T + _PRIOR))
    return np.where(ones_T + zeros_T > 0, odds_T, 0.0).astype(np.float32)


def _counted(num_events: int) -> list[int]:
    """Return the places of the events that are counted: all, or one of each stretch, at random, since logs repeat themselves."""
    stretch = max(1, -(-num_events // MAX_EVENTS))
    starts = np.arange(0, num_events, stretch)
    places = starts + np.random.default_rng(0).integers(stretch, size=len(starts))
    return [int(place) for place in np.minimum(places, num_events - 1)]


def _weights_of_others(spec: FeatureSpec, num_items: int) -> npt.NDArray[np.float32]:
    """Return the weights, float32 [2, T], of the negatives that stand beside an event, as many as are kept on average."""
    if spec.reads_impressions:
        return np.zeros((2, len(spec.tasks)), np.float32)
    keep_rate = spec.negatives.keep_rate
    absent = Sample(labels=[TaskLabel(task=task, value=value) for task, value in negative_labels(spec)], keep_rate=keep_rate)
    return weights(spec, absent) * np.float32(keep_rate * min(NUM_OTHERS, max(num_items - 1, 0)))
