"""The join: exposures and feedback of one partition become labelled samples. Pure: no I/O, no clock, no randomness.

The logs are the state. What is in memory can be rebuilt from them at any time, because:

- every decision rests on event times and offsets, not on how the two topics interleaved: feedback is in its request's window iff it
  was accepted before the window's end, whenever it was read; a retry supersedes iff it was exposed before that end; revisions count in
  offset order. So the same logs give the same sample ids.
- an exposure may be committed only when its request is retired (window and late horizon have passed on both topics), and feedback
  only when no exposure that will be read again has feedback at or below it. So what is read again is read with all its feedback.
- a tick says up to which offset feedback is done (`Cut.feedback_position`). After a restart, feedback below it whose exposure has been
  retired is known to be finished, and is not taken for an orphan. It says the same of exposures: those below it are passed over, though
  the commit may have come less far, so no sample of them stands behind the tick.

Two things are not repeated exactly: windows closed early because memory was full, and feedback that arrives out of order by more than the
intake allows. Neither loses feedback; the sample may then carry a retraction that a second reading would not need.

It does not know Kafka, Protobuf, or what a feature means.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.events import dead_letter_reasons as reasons
from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.events.feedback_kinds import IMPRESSION
from services.common.platform.ids import sample_id, sample_ids
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import (
    Label,
    Standing,
    keep_negative,
    keep_negatives,
    labels_for,
    negative_labels,
    revise,
    value_fault,
)
from streams.joiner.freshness import Freshness
from streams.joiner.model import Cut, Emission, JoinConfig, Resume, Sample, SampleGroup
from streams.partitioned.intake import Intake
from streams.partitioned.records import Forward, Record

# What a pending request costs beside its features block: measured with tracemalloc, 100 items whose ids are shared strings.
_REQUEST_OVERHEAD_BYTES = 2_500
# What a joined feedback leaves behind: its id, and the labels that stand. Measured with tracemalloc, of two tasks.
_FEEDBACK_OVERHEAD_BYTES = 650
_ALL_SEEN = -1  # every bit is set
_HEAP_SLACK = 64  # entries of requests that are gone which a heap may hold beside twice those that are there


class _Answered(NamedTuple):
    """What feedback has said about one item: how many there were, and the labels that stand."""

    revision: int = 0
    standing: tuple[Standing, ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(held.label for held in self.standing)


@dataclass(slots=True)
class _Request:
    """One exposure and what is known about it. `answers` has the answered items by id; bit n of `seen` says whether the user saw the item
    of row n; `last_copy` is the offset of its last repetition."""

    exposure: Exposure
    offset: int
    last_copy: int
    window_end_ms: int
    expires_ms: int
    cost_bytes: int
    seen: int
    answers: dict[str, _Answered] = field(default_factory=dict)
    feedback_ids: set[str] = field(default_factory=set)
    first_feedback: int | None = None
    last_feedback: int = -1
    is_closed: bool = False
    is_retired: bool = False
    is_superseded: bool = False

    @property
    def has_negatives(self) -> bool:
        return bool(self.exposure.features_block) and not self.is_superseded


@dataclass(frozen=True, slots=True)
class _Held:
    """A retired request with feedback or with repetitions that stand above the committed offsets: it would be read again."""

    offset: int
    last_copy: int
    first_feedback: int | None
    last_feedback: int


class JoinerPartition:
    """The join of one partition. Feed it records in offset order per topic, and ticks; write what it returns in order.

    Attributes:
        intake: exposures are its subjects.
        freshness: what ticks have yet to say.
    """

    def __init__(self, spec: FeatureSpec, config: JoinConfig, intake: Intake, resume: Resume | None = None) -> None:
        """No `resume` means that no tick was ever written."""
        resume = resume or Resume()
        self.intake = intake
        self.freshness = Freshness(intake.allowance_ms)
        intake.feedback_done = resume.feedback_position
        intake.subjects.pass_over(resume.exposures_position)
        self._spec = spec
        self._config = config
        self._counts = intake.counts
        self._negative_labels = negative_labels(spec)
        self._keep_rate = spec.negatives.keep_rate
        self._seen_at_first = 0 if spec.negatives.source == "impressions" else _ALL_SEEN
        self._requests: dict[str, _Request] = {}  # by request id, in offset order
        self._closings: list[tuple[int, int, _Request]] = []  # heap by window end
        self._retirements: list[tuple[int, int, _Request]] = []  # heap by expiry
        self._first_feedbacks: list[tuple[int, int, _Request]] = []  # heap by first feedback offset
        self._held: list[_Held] = []
        self._by_idempotency: dict[tuple[str, str], _Request] = {}
        self._closing_watermark_ms = 0
        self._tick_watermark_ms = resume.watermark_ms

    @property
    def num_pending(self) -> int:
        """Requests that are neither retired nor superseded out of memory."""
        return len(self._requests)

    def on_exposure(self, exposure: Exposure, record: Record) -> Sequence[Emission]:
        """Take one exposure in, and join the feedback that waited for it."""
        if not self.intake.subjects.advance(record.offset):
            return []
        owner = self.intake.owner_elsewhere(exposure.user_id)
        if owner is not None:
            self._counts["forwarded"] += 1
            return [Forward(record, owner)]
        self.intake.subjects.reach(exposure.exposed_at_ms)
        if exposure.features_block and exposure.schema_hash != self._spec.schema_hash:
            detail = f"features of schema {exposure.schema_hash or '(none)'}, this joiner has {self._spec.schema_hash}"
            return self.intake.set_aside(record, reasons.SCHEMA_MISMATCH, detail)
        repeated = self._requests.get(exposure.request_id)
        if repeated is not None:
            repeated.last_copy = record.offset
            self._counts["duplicate_exposures"] += 1
            return []
        self._counts["exposures"] += 1
        request = self._add(exposure, record.offset)
        emissions: list[Emission] = []
        for feedback, waited in self.intake.waiting.take_of(exposure.request_id):
            emissions += self._join(request, feedback, waited)
        emissions += self._shed()
        return emissions

    def on_feedback(self, feedback: Feedback, record: Record) -> Sequence[Emission]:
        """Take one feedback in: join it, let it wait for its exposure, or set it aside."""
        if not self.intake.feedback.advance(record.offset):
            return []
        owner = self.intake.owner_elsewhere(feedback.user_id)
        if owner is not None:
            if record.offset < self.intake.feedback_done:
                self._counts["known_before_restart"] += 1
                return []
            self._counts["forwarded"] += 1
            return [Forward(record, owner)]
        self.intake.feedback.reach(feedback.accepted_at_ms)
        if feedback.is_about_answer:
            self._counts["about_answers"] += 1  # the curator's
            return []
        if feedback.kind == IMPRESSION.name:
            if self._seen_at_first == _ALL_SEEN:
                self._counts["impressions_unused"] += 1
                return []
        elif feedback.kind not in self._spec.kinds:
            detail = f"kind {feedback.kind!r} is not in the feature spec (known: {', '.join(sorted(self._spec.kinds))})"
            return self.intake.set_feedback_aside(record, reasons.UNKNOWN_KIND, detail, feedback.feedback_id)
        fault = value_fault(self._spec, feedback.kind, feedback.value)
        if fault is not None:
            return self.intake.set_feedback_aside(record, reasons.VALUE_OUT_OF_RANGE, fault, feedback.feedback_id)
        request = self._requests.get(feedback.request_id)
        if request is not None:
            return [*self._join(request, feedback, record), *self._shed()]
        self.intake.waiting.add(feedback, record)
        return self._shed()

    def on_tick(self, now_ms: int, ends: tuple[int | None, int | None]) -> tuple[Sequence[Emission], Cut]:
        """Close windows, retire requests, give up on feedback whose exposure did not come, and say how far everything is.

        Args:
            now_ms: wall clock, Unix milliseconds.
            ends: where exposures and feedback end, as for Intake.watermarks_ms.
        """
        exposures_ms, feedback_ms = self.intake.watermarks_ms(now_ms, ends)
        self._closing_watermark_ms = max(self._closing_watermark_ms, min(exposures_ms, feedback_ms))
        emissions = [*self._close_due()]
        self._retire_due()
        window_ms = self._config.window_ms
        emissions += self.intake.give_up_on_waiting(exposures_ms, window_ms, f"no exposure of its request within {window_ms} ms")
        # Feedback holds the watermark until the exposures of its time have been read. What waits on is an orphan, or its exposure is
        # late; the others are not held up for a whole window by one wrong request id.
        oldest_unread_ms = self.intake.waiting.oldest_ms(after_ms=exposures_ms, default=feedback_ms + 1)
        self._tick_watermark_ms = max(self._tick_watermark_ms, min(feedback_ms, oldest_unread_ms - 1))
        self.freshness.ticked(now_ms)
        return emissions, self._cut(now_ms - now_ms % self._config.tick_gap_ms)

    def _add(self, exposure: Exposure, offset: int) -> _Request:
        window_end_ms = exposure.exposed_at_ms + self._config.window_ms
        request = _Request(
            exposure=exposure,
            offset=offset,
            last_copy=offset,
            window_end_ms=window_end_ms,
            expires_ms=window_end_ms + self._config.late_horizon_ms,
            cost_bytes=len(exposure.features_block) + 8 * len(exposure.item_ids) + _REQUEST_OVERHEAD_BYTES,
            seen=self._seen_at_first,
        )
        self._requests[exposure.request_id] = request
        self.intake.kept_bytes += request.cost_bytes
        heapq.heappush(self._closings, (request.window_end_ms, offset, request))
        heapq.heappush(self._retirements, (request.expires_ms, offset, request))
        if exposure.idempotency_key:
            key = (exposure.user_id, exposure.idempotency_key)
            earlier = self._by_idempotency.get(key)
            if earlier is not None and exposure.exposed_at_ms < earlier.window_end_ms:
                earlier.is_superseded = True
                self._counts["superseded"] += 1
            self._by_idempotency[key] = request
        return request

    def _join(self, request: _Request, feedback: Feedback, record: Record) -> Sequence[Emission]:
        exposure = request.exposure
        self._note_offset(request, record.offset)
        refusal = _refusal(request, feedback)
        if refusal is not None:
            return self.intake.set_feedback_aside(record, *refusal, feedback.feedback_id)
        if feedback.kind == IMPRESSION.name:
            return self._see(request, feedback)
        if feedback.feedback_id in request.feedback_ids:
            self._counts["duplicate_feedback"] += 1
            return []
        request.feedback_ids.add(feedback.feedback_id)
        request.cost_bytes += _FEEDBACK_OVERHEAD_BYTES
        self.intake.kept_bytes += _FEEDBACK_OVERHEAD_BYTES
        before = request.answers.get(feedback.item_id, _Answered())
        said = labels_for(self._spec, feedback.kind, feedback.value)
        now = _Answered(before.revision + 1, revise(self._spec, before.standing, said, feedback.accepted_at_ms))
        request.answers[feedback.item_id] = now
        row = exposure.item_ids.index(feedback.item_id)
        samples: list[Sample] = []
        retracts = False
        # A superseded request gives no negatives when it is closed. Whether it was superseded may be read after this feedback, so the
        # latter brings the negative that it takes back in either case.
        closed_with_negatives = request.is_closed and not request.is_superseded
        if now.revision == 1 and (closed_with_negatives or feedback.accepted_at_ms >= request.window_end_ms):
            negative = self._negative(request, row)
            retracts = negative is not None
            if negative is not None and not closed_with_negatives:
                samples.append(negative)  # its window is over, though it has not been closed with negatives
            self._counts["late_feedback"] += 1
        identity = sample_id(exposure.request_id, feedback.item_id, now.revision)
        samples.append(Sample(identity, row, now.revision, now.labels, 1.0, retracts, feedback, before.labels))
        self._counts["joined_feedback"] += 1
        self.freshness.joined(feedback.accepted_at_ms)
        return [SampleGroup(exposure, request.offset, tuple(samples), feedback.traceparent)]

    def _see(self, request: _Request, impression: Feedback) -> Sequence[Emission]:
        """Note that an item was seen: unanswered, it becomes a negative with the others, or now when the window was closed without it."""
        row = request.exposure.item_ids.index(impression.item_id)
        if request.seen >> row & 1:
            self._counts["duplicate_impressions"] += 1
            return []
        request.seen |= 1 << row
        self._counts["impressions"] += 1
        if not (request.is_closed and request.has_negatives) or impression.item_id in request.answers:
            return []
        negative = self._negative(request, row)
        if negative is None:
            return []
        self._counts["negatives"] += 1
        return [SampleGroup(request.exposure, request.offset, (negative,), impression.traceparent)]

    def _note_offset(self, request: _Request, offset: int) -> None:
        """Remember which feedback records must be read again whenever the request is, joined or not."""
        request.last_feedback = max(request.last_feedback, offset)
        if request.first_feedback is None or offset < request.first_feedback:
            request.first_feedback = offset
            heapq.heappush(self._first_feedbacks, (offset, request.offset, request))

    def _negative(self, request: _Request, row: int) -> Sample | None:
        """Return what the item of a row is when nobody answers it; None when it was not seen, or is not kept."""
        identity = sample_id(request.exposure.request_id, request.exposure.item_ids[row], 0)
        if not (request.seen >> row & 1 and keep_negative(identity, self._keep_rate)):
            return None
        return self._as_negative(identity, row)

    def _as_negative(self, identity: int, row: int) -> Sample:
        return Sample(identity, row, 0, self._negative_labels, self._keep_rate, False, None)

    def _close_due(self) -> Sequence[Emission]:
        emissions: list[Emission] = []
        while self._closings and self._closings[0][0] <= self._closing_watermark_ms:
            emissions += self._close(heapq.heappop(self._closings)[2])
        return emissions

    def _close(self, request: _Request) -> Sequence[Emission]:
        """End the window: the kept ones of the seen and unanswered items become negatives."""
        if request.is_closed:
            return []
        request.is_closed = True
        if not request.has_negatives:
            return []
        item_ids, answers, seen = request.exposure.item_ids, request.answers, request.seen
        identities_N = sample_ids(request.exposure.request_id, item_ids, 0)
        rows = keep_negatives(identities_N, self._keep_rate).nonzero()[0].tolist()
        samples = tuple(self._as_negative(int(identities_N[row]), row) for row in rows if seen >> row & 1 and item_ids[row] not in answers)
        if not samples:
            return []
        self._counts["negatives"] += len(samples)
        return [SampleGroup(request.exposure, request.offset, samples, request.exposure.traceparent)]

    def _retire_due(self) -> None:
        while self._retirements and self._retirements[0][0] <= self._closing_watermark_ms:
            self._retire(heapq.heappop(self._retirements)[2])

    def _retire(self, request: _Request) -> None:
        if request.is_retired:
            return
        request.is_retired = True
        del self._requests[request.exposure.request_id]
        self.intake.kept_bytes -= request.cost_bytes
        key = (request.exposure.user_id, request.exposure.idempotency_key)
        if self._by_idempotency.get(key) is request:
            del self._by_idempotency[key]
        if request.first_feedback is not None or request.last_copy > request.offset:
            self._held.append(_Held(request.offset, request.last_copy, request.first_feedback, request.last_feedback))

    def _shed(self) -> Sequence[Emission]:
        """Make room: the oldest requests are closed and retired before their time, then the oldest waiting feedback is given up on."""
        emissions: list[Emission] = []
        while self.intake.is_overfull and (self._requests or self.intake.waiting):
            if self._requests:
                request = heapq.heappop(self._retirements)[2]
                if not request.is_retired:
                    emissions += self._close(request)
                    self._retire(request)
                    self._counts["retired_early"] += 1
            else:
                emissions += self.intake.give_up_on_first("no room to wait longer for its exposure")
        self._forget_retired()
        return emissions

    def _forget_retired(self) -> None:
        """Take out of the heaps what was retired before its time: it would stay there until its window's end, beyond the bound."""
        if len(self._closings) > 2 * len(self._requests) + _HEAP_SLACK:
            self._closings = [entry for entry in self._closings if not entry[2].is_closed]
            heapq.heapify(self._closings)
        if len(self._first_feedbacks) > 2 * len(self._requests) + _HEAP_SLACK:
            self._first_feedbacks = [entry for entry in self._first_feedbacks if not entry[2].is_retired]
            heapq.heapify(self._first_feedbacks)

    def _cut(self, tick: int) -> Cut:
        position = self.intake.waiting.first_offset(default=self.intake.feedback.next_offset)
        oldest = next(iter(self._requests.values()), None)
        exposure_floor = self.intake.subjects.next_offset if oldest is None else oldest.offset
        exposure_floor = min([exposure_floor, *(held.offset for held in self._held if held.last_feedback >= position)])
        for held in sorted(self._held, key=lambda held: held.offset, reverse=True):
            if held.offset < exposure_floor <= held.last_copy:
                exposure_floor = held.offset  # else its repetition would be taken for a new request
        # Whatever is read again, retired or not, must be read again with all its feedback: revisions are counted anew.
        self._held = [held for held in self._held if held.last_copy >= exposure_floor]
        while self._first_feedbacks and self._first_feedbacks[0][2].is_retired:
            heapq.heappop(self._first_feedbacks)
        feedback_floor = min([position, *(held.first_feedback for held in self._held if held.first_feedback is not None)])
        if self._first_feedbacks:
            feedback_floor = min(feedback_floor, self._first_feedbacks[0][0])
        # What was done before the restart stays done, though it is being read again.
        done = max(position, self.intake.feedback_done)
        return Cut(tick, self._tick_watermark_ms, done, exposure_floor, feedback_floor)


def _refusal(request: _Request, feedback: Feedback) -> tuple[str, str] | None:
    """Return (reason, detail) when the feedback cannot be joined with this request."""
    exposure = request.exposure
    if feedback.user_id != exposure.user_id:
        return reasons.USER_MISMATCH, "its request was another user's"
    if feedback.item_id not in exposure.item_ids:
        return reasons.ITEM_NOT_EXPOSED, f"item {feedback.item_id!r} was not among the {len(exposure.item_ids)} shown"
    if not exposure.features_block:
        return reasons.NO_FEATURES, "its request was answered without features, so there is nothing to learn from"
    if feedback.accepted_at_ms >= request.expires_ms:
        return reasons.TOO_LATE, f"accepted {feedback.accepted_at_ms - exposure.exposed_at_ms} ms after its exposure"
    return None
