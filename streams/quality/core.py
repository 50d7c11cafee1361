"""Windows of quality: what is counted per variant and model version, and when it is an alarm. Pure: no I/O, no clock.

`Quality` takes events in and, at the end of a window, gives out one `Window` per (kind, variant, model version) that had any, and one of
kind "mesh" for what belongs to no variant. Feedback counts in the window in which it came, for the variant of its request; feedback about
a request that is not known by the end of the next window is "unmatched". Shapes: N items, U user features, F item features.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from services.common.events.dead_letter_reasons import ORPHAN, REDRIVE_CLAIMED, REDRIVEN
from services.common.events.feedback_kinds import ANSWER_KINDS, ITEM_KINDS, opinion_of
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import UnknownKind, ValueOutOfRange, labels_for
from streams.quality.drift import Drift, Rows
from streams.quality.psi import Float32Array

RECOMMEND, GENERATE, MESH = "recommend", "generate", "mesh"
OTHER_VERSION = "other"
_MAX_REPLICAS = 64
_NOTES = frozenset({REDRIVE_CLAIMED, REDRIVEN})


class Limits(Protocol):
    """From when on a number is an alarm; the settings have these."""

    @property
    def max_series(self) -> int: ...  # noqa: D102
    @property
    def remembered_requests(self) -> int: ...  # noqa: D102
    @property
    def min_requests(self) -> int: ...  # noqa: D102
    @property
    def max_rows(self) -> int: ...  # noqa: D102
    @property
    def degraded_limit(self) -> float: ...  # noqa: D102
    @property
    def orphan_limit(self) -> float: ...  # noqa: D102
    @property
    def orphan_span_ms(self) -> int: ...  # noqa: D102
    @property
    def watermark_limit_ms(self) -> int: ...  # noqa: D102
    @property
    def forget_replica_ms(self) -> int: ...  # noqa: D102


class Key(NamedTuple):
    """Whose quality it is."""

    kind: str
    variant: str
    model_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One exposure: its scores [N] (empty when the ranker did not answer) and features (None when they are missing)."""

    request_id: str
    variant: str
    model_version: str
    is_degraded: bool
    scores: Sequence[float]
    user_U: Float32Array | None = None
    items_NF: Float32Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer of the language model; times in milliseconds, None when it never began (or took no measurable time)."""

    request_id: str
    variant: str
    model_version: str
    is_degraded: bool
    finish_reason: str
    ttft_ms: float | None
    generating_ms: float | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One piece of feedback."""

    request_id: str
    item_id: str
    kind: str
    value: float


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica last said: how old its weights may be, and when it said so. Unix milliseconds."""

    watermark_ms: int
    reported_at_ms: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """One number that is beyond its limit."""

    name: str
    value: float
    limit: float
    detail: str


@dataclass(frozen=True, slots=True)
class Window:
    """What is said about one key and time, Unix milliseconds, the end exclusive."""

    key: Key
    start_ms: int
    end_ms: int
    metrics: Mapping[str, float]
    alarms: Sequence[Alarm]


@dataclass(slots=True)
class _Tally:
    """What one key has gathered in the present window. `score_sum`: of the ranker's scores; `opinions`: sums by kind of feedback;
    `events`: what is no act, by metric."""

    requests: int = 0
    degraded: int = 0
    acts: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    positive: int = 0
    opinions: dict[str, float] = field(default_factory=dict)
    score_sum: float = 0.0
    num_scores: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    finished: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    generating_ms: float = 0.0
    rows: Rows = field(default_factory=Rows)


_STEP_BACK_MS = 1_000
"""A clock that is put right by less ends no window a second time."""


def over_at(now_ms: int, window_end_ms: int, window_ms: int) -> tuple[int, int] | None:
    """Return start and end of the window that is over; None while it lasts. A clock that was put back ends it.

    A process that stood still closes one long window, not several empty ones.
    """
    if window_end_ms - window_ms - _STEP_BACK_MS <= now_ms < window_end_ms:
        return None
    end_ms = now_ms // window_ms * window_ms
    return min(window_end_ms, end_ms) - window_ms, end_ms


class Quality:
    """The reducer of the whole stream."""

    def __init__(self, spec: FeatureSpec, drift: Drift, limits: Limits) -> None:
        """`drift` keeps the references; `limits` says what is too much."""
        self._spec, self._drift, self._limits = spec, drift, limits
        self._requests: OrderedDict[str, Key] = OrderedDict()
        self._tallies: dict[Key, _Tally] = {}
        self._mesh: Counter[str] = Counter()
        self._letters: Counter[str] = Counter()
        self._gradient_norm = 0.0
        # (end of the window, orphans, feedback) of the windows within orphan_span_ms.
        self._span: deque[tuple[int, int, int]] = deque()
        self._replicas: dict[str, Replica] = {}
        # Feedback without a known request: that of this window, and that of the one before.
        self._early: list[Act] = []
        self._waiting: list[Act] = []

    def remember(self, request_id: str, kind: str, variant: str, model_version: str) -> Key:
        """Note whose request it is, without counting it; return its key."""
        key = Key(kind, variant, model_version)
        self._requests[request_id] = key
        while len(self._requests) > self._limits.remembered_requests:
            self._requests.popitem(last=False)
        return key

    def recommended(self, shown: Recommended) -> None:
        """Count an exposure; the second of one request id (a spool that was sent twice) is ignored."""
        if shown.request_id in self._requests:
            return
        tally = self._tally(self.remember(shown.request_id, RECOMMEND, shown.variant, shown.model_version))
        tally.requests += 1
        tally.degraded += shown.is_degraded
        if len(shown.scores) > 0:
            scores_N = np.asarray(shown.scores, np.float32)
            tally.num_scores += len(scores_N)
            tally.score_sum += float(scores_N.sum(dtype=np.float64))
            tally.rows.add("scores", scores_N, self._limits.max_rows)
        if shown.user_U is not None and shown.items_NF is not None:
            tally.rows.add("user", shown.user_U.reshape(1, -1), self._limits.max_rows)
            tally.rows.add("item", shown.items_NF, self._limits.max_rows)

    def generated(self, answer: Generated) -> None:
        """Count an answer; the second of one request id is ignored."""
        if answer.request_id in self._requests:
            return
        tally = self._tally(self.remember(answer.request_id, GENERATE, answer.variant, answer.model_version))
        tally.requests += 1
        tally.degraded += answer.is_degraded
        tally.finished[answer.finish_reason] += 1
        if answer.ttft_ms is not None:
            tally.ttft_ms.append(answer.ttft_ms)
        if answer.generating_ms:
            tally.tokens += answer.completion_tokens
            tally.generating_ms += answer.generating_ms
        tally.rows.add("tokens", np.asarray([[answer.prompt_tokens, answer.completion_tokens]], np.float32), self._limits.max_rows)

    def acted(self, act: Act) -> None:
        """Count one piece of feedback; what comes before its request waits for it until the end of the next window."""
        self._mesh["feedback"] += 1
        if not self._count(act):
            self._early.append(act)

    def _count(self, act: Act) -> bool:
        """Count the act for its request; False when that is not known."""
        key = self._requests.get(act.request_id)
        if key is None:
            return False
        tally = self._tally(key)
        if act.kind in ITEM_KINDS:
            tally.events[ITEM_KINDS[act.kind].metric] += 1
            return True
        tally.acts[act.kind] += 1
        if key.kind == GENERATE and act.kind in ANSWER_KINDS:
            tally.opinions[act.kind] = tally.opinions.get(act.kind, 0.0) + (opinion_of(act.kind, act.value) or 0.0)
            return True
        try:
            labels = labels_for(self._spec, act.kind, act.value)
        except (UnknownKind, ValueOutOfRange):
            return True
        tally.judged += 1
        tally.positive += bool(labels) and all(label.value == 1.0 for label in labels)
        return True

    def died(self, source_topic: str, reason: str) -> None:
        """Count a dead letter; a note that a letter was put back is not counted."""
        if reason in _NOTES:
            return
        self._letters[f"dead_letters.{source_topic}.{reason}"] += 1
        self._mesh["dead_letters"] += 1
        self._mesh["orphans"] += reason == ORPHAN

    def reported(self, replica_id: str, replica: Replica) -> None:
        """Note what a replica says."""
        known = self._replicas.get(replica_id)
        if known is None and len(self._replicas) >= _MAX_REPLICAS:
            return
        if known is None or known.reported_at_ms <= replica.reported_at_ms:
            self._replicas[replica_id] = replica

    def learned(self, num_samples: int, gradient_norm: float) -> None:
        """Note a delta: the samples in it, and the L2 norm of the gradients that came of them."""
        self._mesh["deltas"] += 1
        self._mesh["samples_trained"] += num_samples
        if num_samples > 0:
            self._gradient_norm = math.hypot(self._gradient_norm, gradient_norm)

    def close(self, start_ms: int, end_ms: int) -> list[Window]:
        """End the window and return what is to be said about it, the mesh's last."""
        self._mesh["unmatched_feedback"] += sum(not self._count(act) for act in self._waiting)
        self._waiting, self._early = [act for act in self._early if not self._count(act)], []
        windows = []
        for key, tally in sorted(self._tallies.items()):
            metrics, alarms = self._of_key(key, tally)
            windows.append(Window(key, start_ms, end_ms, metrics, alarms))
        metrics, alarms = self._of_mesh(end_ms)
        windows.append(Window(Key(MESH, "", ""), start_ms, end_ms, metrics, alarms))
        self._tallies, self._mesh, self._letters, self._gradient_norm = {}, Counter(), Counter(), 0.0
        self._drift.end_window()
        return windows

    def _tally(self, key: Key) -> _Tally:
        if key not in self._tallies and len(self._tallies) >= self._limits.max_series:
            key = Key(key.kind, "", OTHER_VERSION)
        return self._tallies.setdefault(key, _Tally())

    def _of_key(self, key: Key, tally: _Tally) -> tuple[dict[str, float], list[Alarm]]:
        metrics: dict[str, float] = {"requests": tally.requests, "feedback": tally.acts.total()}
        alarms: list[Alarm] = []
        if tally.requests:
            metrics["degraded_ratio"] = tally.degraded / tally.requests
            metrics["feedback_rate"] = tally.acts.total() / tally.requests
        metrics |= _generation_metrics(tally) if key.kind == GENERATE else _recommendation_metrics(tally)
        if tally.requests >= self._limits.min_requests:
            ratio, limit = metrics["degraded_ratio"], self._limits.degraded_limit
            if ratio > limit:
                where = f"{tally.degraded} of {tally.requests} answers were degraded: their degraded_reason says what was missing"
                alarms.append(Alarm("degraded", ratio, limit, where))
            found = self._drift.compare(key.kind, key.variant, tally.rows, tally.requests)
            metrics |= {f"psi.{name}": value for name, (value, _) in found.items()}
            alarms += _drift_alarms(found)
        return metrics, alarms

    def _of_mesh(self, now_ms: int) -> tuple[dict[str, float], list[Alarm]]:
        metrics: dict[str, float] = {name: float(count) for name, count in {**self._mesh, **self._letters}.items() if count}
        if self._drift.num_left_out:
            metrics["variants_without_reference"] = self._drift.num_left_out
        alarms = [*self._orphans(metrics, now_ms), *self._gradients(metrics), *self._watermarks(metrics, now_ms)]
        return metrics, alarms

    def _orphans(self, metrics: dict[str, float], now_ms: int) -> Iterable[Alarm]:
        """The joiner waits for an exposure for longer than a window: the ratio is that of a span in which both have come."""
        self._span.append((now_ms, self._mesh["orphans"], self._mesh["feedback"]))
        while self._span[0][0] <= now_ms - self._limits.orphan_span_ms:
            self._span.popleft()
        orphans, feedback = (sum(window[column] for window in self._span) for column in (1, 2))
        if not feedback:
            return
        metrics["orphan_ratio"] = ratio = orphans / feedback
        if feedback >= self._limits.min_requests and ratio > self._limits.orphan_limit:
            detail = (
                f"{orphans} orphans against {feedback} feedback in {self._limits.orphan_span_ms / 1e3:.0f} s: exposures are lost (router's "
                "counters), or senders use wrong request ids; `tunemesh dlq list feedback.v1 --reason orphan` shows them"
            )
            yield Alarm("orphans", ratio, self._limits.orphan_limit, detail)

    def _gradients(self, metrics: dict[str, float]) -> Iterable[Alarm]:
        samples = self._mesh["samples_trained"]
        if not samples:
            return
        metrics["gradient_norm"] = self._gradient_norm
        if self._gradient_norm == 0.0 or not math.isfinite(self._gradient_norm):
            what = "moved no weight" if self._gradient_norm == 0.0 else "gave gradients that are no numbers"
            detail = (
                f"{samples} samples {what}: look at labels and learning rates, and at the trainer's log; `tunemesh pause learning` stops it"
            )
            yield Alarm("zero_gradient", self._gradient_norm, 0.0, detail)

    def _watermarks(self, metrics: dict[str, float], now_ms: int) -> Iterable[Alarm]:
        oldest_ms = now_ms - self._limits.forget_replica_ms
        self._replicas = {name: replica for name, replica in self._replicas.items() if replica.reported_at_ms >= oldest_ms}
        metrics["replicas"] = len(self._replicas)
        ages = {name: float(max(0, now_ms - replica.watermark_ms)) for name, replica in self._replicas.items() if replica.watermark_ms > 0}
        if not ages:
            return
        metrics |= {f"watermark_age_ms.{name}": age for name, age in ages.items()}
        metrics["watermark_age_ms"] = max(ages.values())
        for name, age in sorted(ages.items()):
            if age > self._limits.watermark_limit_ms:
                silent_ms = now_ms - self._replicas[name].reported_at_ms
                detail = (
                    f"the weights of replica {name} lack feedback of the last {age / 1e3:.1f} s (its last report came "
                    f"{silent_ms / 1e3:.1f} s ago): look at the updater, the trainer and the joiner"
                )
                yield Alarm("watermark_old", age, self._limits.watermark_limit_ms, detail)


def _recommendation_metrics(tally: _Tally) -> dict[str, float]:
    metrics: dict[str, float] = {name: float(count) for name, count in tally.events.items()}
    if tally.judged:
        metrics["positive_rate"] = tally.positive / tally.judged
    if tally.num_scores:
        metrics["mean_score"] = tally.score_sum / tally.num_scores
    return metrics


def _generation_metrics(tally: _Tally) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, kind in ANSWER_KINDS.items():
        if num_acts := tally.acts[name]:
            metrics[kind.metric] = num_acts if kind.value is None else tally.opinions[name] / num_acts
    if tally.ttft_ms:
        p50, p95 = np.quantile(tally.ttft_ms, [0.5, 0.95])
        metrics |= {"ttft_p50_ms": float(p50), "ttft_p95_ms": float(p95)}
    if tally.generating_ms:
        metrics["tokens_per_s"] = 1e3 * tally.tokens / tally.generating_ms
    if tally.requests:
        metrics |= {f"{reason}_ratio": tally.finished[reason] / tally.requests for reason in ("error", "cancelled")}
    return metrics


def _drift_alarms(found: Mapping[str, tuple[float, float]]) -> list[Alarm]:
    """One alarm for all features that moved; its value is the worst one's."""
    moved = sorted(((value, limit, name) for name, (value, limit) in found.items() if value > limit), reverse=True)
    if not moved:
        return []
    value, limit, name = moved[0]
    listed = ", ".join(f"{each[2]} {each[0]:.2f}" for each in moved[:5])
    detail = f"{len(moved)} of {len(found)} distributions moved from the reference, first of all {name}: {listed}"
    return [Alarm("drift", value, limit, detail)]
