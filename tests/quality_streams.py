"""How often the publish gate is wrong about quality: hours of simulated samples through the real MaturedLabels and the real QualityGate.

A clean stream is not a quiet one: the share of positives follows the hour of the day and wanders from minute to minute, traffic comes in
bursts, users differ (heavy tails) and a request's items share their user, answers come 3 to 40 s after the exposure on average, some of
them after the window, and the model is always a little behind. It goes on while the trainer restarts, is rolled back, or gets one
partition two minutes late. `python tests/quality_streams.py HOURS` prints the rates.
"""

from __future__ import annotations

import copy
import heapq
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.ranker.features import Features
from services.trainer.group_columns import GroupColumns, Meaning
from services.trainer.matured import Block, MaturedLabels
from services.trainer.quality_gate import QualityGate
from services.trainer.settings import TrainerSettings

HOUR_S = 3_600
WINDOW_MS = 60_000
_START_MS = 1_790_000_000_000
_STRETCH_S = 30
_ITEMS = 12
_PARTITIONS = 2
_ALLOWANCE_MS = 300  # a joiner's: it has read a little further than its watermark
_CATCH_UP_MS = 15_000  # of the stream in a second: a joiner that was down
_NO_FEATURES = Features(0, np.empty(0, np.int64), np.empty(0, np.float16), np.empty(0, np.float16), np.empty((0, 0), np.float16))
_ANSWERED, _UNANSWERED = Meaning((1.0, 0.0, 1.0), True, (True,)), Meaning((0.0, 1.0, 0.0), True, (False,))

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What is wrong with a stream.

    Attributes:
        mixed: share of the items that get the score of another one: features or rows of the wrong entity.
        turned: share of the labels that are turned round: bots, or a client that reports the wrong item.
        lost: share of the answers that do not arrive: a client that lost its feedback.
        times: logits are so many times too large: rates too high, about to diverge.
    """

    mixed: float = 0.0
    turned: float = 0.0
    lost: float = 0.0
    times: float = 1.0


HARMS: Mapping[str, Harm] = {
    "a quarter of the items gets another item's score": Harm(mixed=0.25),
    "half of the items gets another item's score": Harm(mixed=0.5),
    "all items get another item's score": Harm(mixed=1.0),
    "2 % of the labels are turned round": Harm(turned=0.02),
    "5 % of the labels are turned round": Harm(turned=0.05),
    "10 % of the labels are turned round": Harm(turned=0.1),
    "half of the answers are lost": Harm(lost=0.5),
    "3 of 4 answers are lost": Harm(lost=0.75),
    "logits are doubled": Harm(times=2.0),
    "logits are four times as large": Harm(times=4.0),
}


@dataclass(slots=True)
class _Open:
    """What one partition's joiner holds: answers by the time at which they were given, and windows that have not closed."""

    answers: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    windows: deque[tuple[int, int, list[int], Floats]] = field(default_factory=deque)
    clock_ms: int = 0
    watermark_ms: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """What one partition gives between two ticks; `logits_N` of its samples, but for the model's bias."""

    partition: int
    watermark_ms: int
    groups: list[GroupColumns]
    logits_N: Floats


class Stream:
    """Samples of one task in two partitions, second by second: of the smallest blocks, some 200 positives among 1,700 labels."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.second = 0
        self.bias = -2.2  # the model's
        self._phase = self.rng.uniform(0, 2 * math.pi)
        self._answer_ms = 1_000 * math.exp(self.rng.uniform(math.log(3), math.log(40)))
        self._wandering = 0.0
        self._request = 0
        self._partitions = [_Open() for _ in range(_PARTITIONS)]
        self._to_learn: deque[tuple[Floats, Floats]] = deque()

    def segments(self, harm: Harm, down: int | None) -> Iterator[Segment]:
        """Go on by a second; `down` is a partition whose joiner is."""
        if self.second % _STRETCH_S == 0:
            self._learn()
            self._expose(harm)
        self.second += 1
        now_ms = _START_MS + 1_000 * self.second
        for number, partition in enumerate(self._partitions):
            if number == down:
                continue
            partition.clock_ms = min(max(partition.clock_ms + _CATCH_UP_MS, _START_MS), now_ms)
            yield Segment(number, partition.watermark_ms, *_joined(partition))
            partition.watermark_ms = partition.clock_ms - _ALLOWANCE_MS

    def _learn(self) -> None:
        if len(self._to_learn) > WINDOW_MS // 1_000 // _STRETCH_S:
            labels_N, logits_N = self._to_learn.popleft()
            self.bias += 0.2 * math.log(max(labels_N.sum(), 1.0) / _scores(self.bias + logits_N).sum())

    def _expose(self, harm: Harm) -> None:
        """The requests of the next stretch, and how people will answer them."""
        rng = self.rng
        self._wandering = 0.8 * self._wandering + rng.normal(0, 0.1)
        base = -2.2 + 0.5 * math.sin(2 * math.pi * self.second / (24 * HOUR_S) + self._phase) + self._wandering
        num_requests = max(int(140 * math.exp(rng.normal(0, 0.3))), 110)
        user_RI = np.repeat(0.4 * rng.standard_t(4, (num_requests, 1)), _ITEMS, axis=1)
        item_RI = rng.normal(0, 1.0, user_RI.shape)
        labels_RI = rng.random(user_RI.shape) < _scores(base + user_RI + item_RI)
        logits_RI = 0.7 * user_RI + 0.9 * item_RI + rng.normal(0, 0.3, user_RI.shape)
        self._to_learn.append((labels_RI.astype(np.float64), logits_RI.copy()))
        if harm.mixed:
            hit_RI = rng.random(user_RI.shape) < harm.mixed
            logits_RI[hit_RI] = rng.permutation(logits_RI[hit_RI])
        labels_RI = (labels_RI ^ (rng.random(user_RI.shape) < harm.turned)) & (rng.random(user_RI.shape) >= harm.lost)
        delays_RI = rng.exponential(self._answer_ms, user_RI.shape).astype(np.int64)
        exposed_R = np.sort(_START_MS + 1_000 * self.second + rng.integers(0, 1_000 * _STRETCH_S, num_requests)).tolist()
        partition_R = rng.integers(0, _PARTITIONS, num_requests).tolist()
        for row, (exposed_at_ms, number) in enumerate(zip(exposed_R, partition_R, strict=True)):
            self._request += 1
            partition = self._partitions[number]
            for item in np.flatnonzero(labels_RI[row]).tolist():
                answer = (exposed_at_ms + int(delays_RI[row, item]), exposed_at_ms, self._request, item, float(logits_RI[row, item]))
                heapq.heappush(partition.answers, answer)
            unanswered = np.flatnonzero(~labels_RI[row] | (delays_RI[row] >= WINDOW_MS))
            partition.windows.append((exposed_at_ms, self._request, unanswered.tolist(), logits_RI[row, unanswered]))


def _joined(partition: _Open) -> tuple[list[GroupColumns], Floats]:
    """Return what the joiner writes up to its clock: answers as they came, then the windows that are over."""
    groups, logits = [], []
    while partition.answers and partition.answers[0][0] <= partition.clock_ms:
        _, exposed_at_ms, request, item, logit = heapq.heappop(partition.answers)
        groups.append(_group(request, exposed_at_ms, [item], _ANSWERED))
        logits.append(np.array([logit]))
    while partition.windows and partition.windows[0][0] + WINDOW_MS <= partition.clock_ms - _ALLOWANCE_MS:
        exposed_at_ms, request, items, logits_N = partition.windows.popleft()
        if items:
            groups.append(_group(request, exposed_at_ms, items, _UNANSWERED))
            logits.append(logits_N)
    return groups, np.concatenate(logits) if logits else np.empty(0)


def _group(request: int, exposed_at_ms: int, items: list[int], meaning: Meaning) -> GroupColumns:
    return GroupColumns(
        request_id=str(request),
        exposed_at_ms=exposed_at_ms,
        exposure_offset=request,
        features=_NO_FEATURES,
        sample_ids=items,
        item_ids=[str(item) for item in items],
        revisions=[int(meaning is _ANSWERED)] * len(items),
        accepted_at_ms=[0] * len(items),
        positions=[0] * len(items),
        meanings=[meaning] * len(items),
    )


def _scores(logits: Floats) -> Floats:
    scores: Floats = 1 / (1 + np.exp(-logits))
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What happens to a trainer, by the second of its stream.

    Attributes:
        restarts: it goes on from a checkpoint of that moment, in the middle of a segment.
        rollbacks: it goes back to the state of five minutes before, and passes over the samples of a minute.
        outages: the joiner of one partition is down for two minutes.
    """

    restarts: tuple[int, ...] = ()
    rollbacks: tuple[int, ...] = ()
    outages: tuple[int, ...] = ()


class Trainer:
    """What stands between the samples and the decision to publish, and outlives the processes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.gate = QualityGate(TrainerSettings().quality_limits)
        self.labels = MaturedLabels(("task",), (True,))
        self.blocks: list[Block] = []
        self._kept: deque[tuple[float, Mapping[str, NDArray[np.float64]]]] = deque(maxlen=300)

    def live(self, seconds: int, life: Life | None = None, harm: Harm | None = None) -> int | None:
        """Return after how many seconds the gate refused; None when it did not."""
        life, harm, stream, first = life or Life(), harm or Harm(), self.stream, self.stream.second
        passed_over, down_until = first, first
        while stream.second < first + seconds:
            at = stream.second - first
            if at in life.outages:
                down_until = stream.second + 120
            if at in life.rollbacks:
                passed_over = stream.second + 60
                stream.bias = self._kept[0][0]
                self._begin(self._kept[0][1])
            for segment in stream.segments(harm, 1 if stream.second < down_until else None):
                if stream.second > passed_over:
                    self._learn(segment, harm, restarts=at in life.restarts)
            self._kept.append((stream.bias, self.gate.state_arrays()))
            if self.gate.refusal:
                return stream.second - first
        return None

    def _begin(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        self.gate = QualityGate(TrainerSettings().quality_limits)
        self.gate.load_state_arrays(arrays)
        self.labels = MaturedLabels(("task",), (True,))

    def _learn(self, segment: Segment, harm: Harm, *, restarts: bool) -> None:
        scores_N = _scores(harm.times * (self.stream.bias + segment.logits_N)).astype(np.float32)
        cut = len(segment.groups) // 2 if restarts and segment.partition == 0 else 0
        num_before = sum(len(group) for group in segment.groups[:cut])
        self._add(segment, segment.groups[:cut], scores_N[:num_before])
        if cut:
            self._begin(self.gate.state_arrays())
        self._add(segment, segment.groups[cut:], scores_N[num_before:])

    def _add(self, segment: Segment, groups: list[GroupColumns], scores_N: NDArray[np.float32]) -> None:
        for block in self.labels.add(groups, scores_N[:, None], partition=segment.partition, watermark_ms=segment.watermark_ms):
            self.blocks.append(block)
            self.gate.judge(block)


_OFTEN = (1_207, 1_819, 2_411, 3_023)
CLEAN: Mapping[str, Life] = {
    "nothing happens": Life(),
    "the trainer restarts every 10 minutes": Life(restarts=_OFTEN),
    "the trainer is rolled back every 10 minutes": Life(rollbacks=_OFTEN),
    "a partition is two minutes late every 10 minutes": Life(outages=_OFTEN),
}


def false_alarms(life: Life, hours: int, first_seed: int = 0) -> int:
    """Return in how many hours, each of a stream of its own, a clean stream is refused."""
    return sum(Trainer(Stream(first_seed + hour)).live(HOUR_S, life) is not None for hour in range(hours))


def power(harms: Mapping[str, Harm], streams: int, seconds: int = HOUR_S) -> Mapping[str, list[int | None]]:
    """Return by harm after how many seconds each stream was refused: `seconds` of it, behind half an hour that was clean."""
    found: dict[str, list[int | None]] = {name: [] for name in harms}
    for seed in range(streams):
        trainer = Trainer(Stream(1_000_000 + seed))
        if trainer.live(HOUR_S // 2) is None:
            for name, harm in harms.items():
                found[name].append(copy.deepcopy(trainer).live(seconds, harm=harm))
    return found


if __name__ == "__main__":
    num_hours = int(sys.argv[1])
    for happening, life in CLEAN.items():
        print(f"clean, {happening}: {false_alarms(life, num_hours)} of {num_hours} hours refused", flush=True)
    for what, times in power(HARMS, max(num_hours // 5, 20)).items():
        caught = [seconds for seconds in times if seconds is not None]
        when = f"after {np.median(caught):.0f} s (median), {np.percentile(caught, 90):.0f} s (90 %)" if caught else ""
        print(f"{what}: {len(caught)} of {len(times)} refused within an hour {when}", flush=True)
