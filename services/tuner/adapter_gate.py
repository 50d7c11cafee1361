"""The adapter gate: decides whether a tuned adapter may answer anybody. Pure.

It looks at the adapter's weights, at the share of replay in its training, and at its answers on two slices beside those of the base and of
what answers now.

A tune without replay wins its own task and breaks the answering from context, so neither slice alone can tell a good adapter. Shares
come with the percentile bootstrap of the paired differences (Efron and Tibshirani 1993, chapter 13): the same questions are drawn for
both models, since most of the variance is the question's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.language.adapter_manifest import Metric

_RESAMPLES = 5_000
_SEED = 20_061

Right = Sequence[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGateLimits:
    """What an adapter must hold to pass the adapter gate.

    Attributes:
        min_task_right: share of right answers on the task slice.
        max_task_loss: by how much that share may be below the live adapter's. One that is as good is wanted: it knows more than
            the slice asks.
        max_context_loss: by how much the share of right answers from context may be below the base's and the live one's.
        context_margin: how far below zero the lower 95 % bound of (candidate - base) from context may be.
        min_replay_share: of what it was trained on.
        max_update_norm: Euclidean norm of any layer's update.
        min_task_questions, min_context_questions: fewer say nothing.
    """

    min_task_right: float
    max_task_loss: float
    max_context_loss: float
    context_margin: float
    min_replay_share: float
    max_update_norm: float
    min_task_questions: int
    min_context_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceOutcome:
    """Which questions of a slice each model answered right, in one order. `live` equals `base` while no adapter is live."""

    base: Right
    live: Right
    candidate: Right


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of an adapter before it answers: `losses` per step, `norms` per layer, `replay_share` of its training rows."""

    losses: Sequence[float]
    norms: Mapping[str, float]
    replay_share: float


def refused_weights(candidate: Candidate, limits: AdapterGateLimits) -> list[str]:
    """Return why the adapter must not even be loaded, as sentences; empty when it may."""
    refusals = []
    broken = [step for step, loss in enumerate(candidate.losses, start=1) if not math.isfinite(loss)]
    if broken:
        refusals.append(f"the loss is NaN or infinite at {len(broken)} of {len(candidate.losses)} steps, first at step {broken[0]}")
    unsound = sorted(name for name, norm in candidate.norms.items() if not math.isfinite(norm))
    if unsound:
        refusals.append(f"the weights of {len(unsound)} of {len(candidate.norms)} layers hold NaN or infinity, e.g. {unsound[0]}")
    elif not candidate.norms:
        refusals.append("the adapter changes no layer")
    else:
        name, norm = max(candidate.norms.items(), key=lambda pair: pair[1])
        if norm > limits.max_update_norm:
            refusals.append(f"the update of {name} has norm {norm:.3g}, above the limit of {limits.max_update_norm:.3g}")
    return refusals


def refused_answers(task: SliceOutcome, context: SliceOutcome, candidate: Candidate, limits: AdapterGateLimits) -> list[str]:
    """Return why the adapter must not go live, as sentences with their numbers; empty when it may."""
    return [*_refused_sizes(task, context, limits), *_refused_task(task, limits), *_refused_context(context, candidate, limits)]


def measurements(task: SliceOutcome, context: SliceOutcome) -> dict[str, Metric]:
    """Return the share of right answers of each model on each slice, and the paired differences, with 95 % intervals."""
    metrics = {}
    for name, outcome in (("task", task), ("context", context)):
        for model, right in (("base", outcome.base), ("live", outcome.live), ("candidate", outcome.candidate)):
            metrics[f"{name}.{model}"] = share(right)
        metrics[f"{name}.candidate_minus_live"] = difference(outcome.candidate, outcome.live)
        metrics[f"{name}.candidate_minus_base"] = difference(outcome.candidate, outcome.base)
    return metrics


def share(right: Right) -> Metric:
    """Return the share of right answers; NaN over no question."""
    return _bootstrapped(np.asarray(right, dtype=np.float64))


def difference(left: Right, right: Right) -> Metric:
    """Return the mean of left - right over the same questions; its bounds resample questions, so the pairs stay together."""
    return _bootstrapped(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64))


def _bootstrapped(values_N: npt.NDArray[np.float64]) -> Metric:
    num = len(values_N)
    if num == 0:
        return Metric(value=math.nan, low=math.nan, high=math.nan, num_samples=0)
    rows_RN = np.random.default_rng(_SEED).integers(0, num, size=(_RESAMPLES, num))
    low, high = np.quantile(values_N[rows_RN].mean(axis=1), [0.025, 0.975])
    return Metric(value=float(values_N.mean()), low=float(low), high=float(high), num_samples=num)


def _refused_sizes(task: SliceOutcome, context: SliceOutcome, limits: AdapterGateLimits) -> list[str]:
    refusals = []
    for name, outcome, fewest in (
        ("task", task, limits.min_task_questions),
        ("context", context, limits.min_context_questions),
    ):
        if len(outcome.candidate) < fewest:
            refusals.append(f"the {name} slice has {len(outcome.candidate)} questions, and fewer than {fewest} say nothing")
    return refusals


def _refused_task(task: SliceOutcome, limits: AdapterGateLimits) -> list[str]:
    right, gain, loss = share(task.candidate), difference(task.candidate, task.base), difference(task.candidate, task.live)
    refusals = []
    if not right.value >= limits.min_task_right:
        refusals.append(
            f"the task slice is answered right in {right.value:.2f} of the cases, below the floor of {limits.min_task_right:.2f}"
        )
    if not gain.low > 0:
        refusals.append(
            f"the task slice is not answered better than by the base: {right.value:.2f} against {share(task.base).value:.2f}, "
            f"difference {_interval(gain)}, and the lower bound must be above 0"
        )
    if list(task.live) != list(task.base) and not loss.value >= -limits.max_task_loss:
        refusals.append(
            f"the task slice is answered worse than by the live model: {right.value:.2f} against {share(task.live).value:.2f} right, "
            f"difference {_interval(loss)}"
        )
    return refusals


def _refused_context(context: SliceOutcome, candidate: Candidate, limits: AdapterGateLimits) -> list[str]:
    refusals = []
    if not candidate.replay_share >= limits.min_replay_share:
        refusals.append(
            f"{candidate.replay_share:.2f} of what it was trained on are context-answering examples (replay), "
            f"below the least share of {limits.min_replay_share:.2f}"
        )
    right = share(context.candidate).value
    for name, other in (("base", context.base), ("live model", context.live)):
        if name == "live model" and list(context.live) == list(context.base):
            continue
        if not right >= share(other).value - limits.max_context_loss:
            refusals.append(
                f"answers from given context became worse than the {name}'s: {right:.2f} against {share(other).value:.2f} right, "
                f"difference {_interval(difference(context.candidate, other))}"
            )
    loss = difference(context.candidate, context.base)
    if not loss.low > -limits.context_margin:
        refusals.append(
            f"answers from given context may be worse than the base's by more than {limits.context_margin:.2f}: "
            f"difference {_interval(loss)}"
        )
    return refusals


def _interval(metric: Metric) -> str:
    return f"{metric.value:+.2f} [{metric.low:+.2f}, {metric.high:+.2f}]"
