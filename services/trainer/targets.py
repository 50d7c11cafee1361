"""What samples teach: the weights of their losses, so that everything that is said about one shown item sums to one sample. Pure; no torch.

Measured by simulation of joiner and learner (tests/integration/trainer/test_calibration.py: 1 to 3 feedbacks an item, in the window, late
and mixed, opinions that change; 18 runs of 20,000 items): prediction over true rate is 1.02 on average, from 0.99 to 1.04.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import Sample

from services.common.ranker.feature_spec import FeatureSpec

Float32Array = npt.NDArray[np.float32]


class Lesson(NamedTuple):
    """What a teacher said of a step's samples, before it learned them.

    Attributes:
        said_BT: float32 [B, T], its probabilities of the thinned samples (`StepStats.scores_BT`).
        weight: of the loss towards them, where that towards the labels weighs 1.
    """

    said_BT: Float32Array
    weight: np.float32


def weights(spec: FeatureSpec, sample: Sample) -> Float32Array:
    """Return the weights of a sample's losses, float32 [2, T]: towards 1 and towards 0; tasks without a label weigh nothing.

    What feedback says about an item replaces what was known of it: the loss of the labels before weighs -1, so all revisions sum to the
    one sample of the last. A late answer takes its negative back in the same way (Ktena et al. 2019, fake negatives).

    Of a task whose unanswered items are negatives, these are thinned and the logit is shifted to make up for it. So a 0 that feedback
    states weighs the keep rate there, and a negative that was kept at another rate than the spec's present one weighs their ratio.
    """
    column = {name: index for index, name in enumerate(spec.task_names)}
    unanswered = [index for index, task in enumerate(spec.tasks) if task.unanswered is not None]
    keep_rate = spec.negatives.keep_rate
    weights_2T = np.zeros((2, len(column)), dtype=np.float32)
    ones_T, zeros_T = weights_2T
    if not sample.revision:
        for label in sample.labels:
            ones_T[column[label.task]] = keep_rate / sample.keep_rate * label.value
            zeros_T[column[label.task]] = keep_rate / sample.keep_rate * (1.0 - label.value)
        return weights_2T
    zero_weights = dict.fromkeys(column, 1.0) | {spec.task_names[index]: keep_rate for index in unanswered}
    for sign, labels in ((1.0, sample.labels), (-1.0, sample.replaces)):
        for label in labels:
            ones_T[column[label.task]] += sign * label.value
            zeros_T[column[label.task]] += sign * (1.0 - label.value) * zero_weights[label.task]
    if sample.retracts_negative:
        zeros_T[unanswered] -= 1.0
    return weights_2T


def taught(ones_BT: Float32Array, zeros_BT: Float32Array, lesson: Lesson) -> tuple[Float32Array, Float32Array]:
    """Return the weights of samples' losses, float32 [B, T] each, with those towards a teacher's answers on top (Hinton et al. 2015).

    A lesson weighs as its sample does: tasks without a label get none, and what is taken back takes its lesson back. Where negatives are
    thinned, student and teacher are thinned alike: the answer is of the samples as they are learned.
    """
    lessons_BT = lesson.weight * (ones_BT + zeros_BT)
    return ones_BT + lessons_BT * lesson.said_BT, zeros_BT + lessons_BT * (np.float32(1.0) - lesson.said_BT)


def says_something_new(sample: Sample) -> bool:
    """Return whether a sample changes what is known of its item: feedback that repeats an opinion does not."""
    if not sample.replaces or sample.retracts_negative:
        return True
    return {label.task: label.value for label in sample.labels} != {label.task: label.value for label in sample.replaces}
