"""The curation of one partition: answers and feedback about them become examples. Pure: no I/O, no clock, no randomness.

The logs are the state. An answer is kept for `window_ms` and committed only when it is retired, so a curator that starts again reads it
again; and not before all feedback that was joined with it is committed, so what is read again finds its answer. Feedback is committed
when it became an example or was set aside. Examples that stand in the log already (`Seen`) are not written twice.

Feedback waits for its answer until the answers' log has been read to a time later by `wait_ms` than the feedback.

What people wrote (the question, earlier turns, passages that came with the request, the answer, a comment) must be free of personal
data; retrieved passages and the template's own words are the operator's, and are not looked at.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.common.events import dead_letter_reasons as reasons
from services.common.events.feedback_kinds import DEMONSTRATION, is_about_answer
from streams.curator.model import Cut, DeadLetter, Emission, Example, Feedback, Generation, Record
from streams.curator.pii import kinds_in
from streams.position import LogPosition

# What a kept answer and a waiting feedback cost beside their texts.
_OVERHEAD_BYTES = 1_500
_BROKEN = "error"


class Seen(Protocol):
    """The examples that were written before, by any curator."""

    def has(self, example_id: str) -> bool:
        """Return whether the example stands in the log, or is on its way there."""
        ...

    def add(self, example_id: str) -> None:
        """Note an example that is being written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateConfig:
    """How long what is kept.

    Attributes:
        window_ms: for so long after its end an answer takes feedback.
        wait_ms: for so long feedback waits for its answer.
        allowance_ms: how far events may be out of order, or under way to the broker, when a topic has been read to its end.
        max_pending_bytes: bound on the memory of kept answers and waiting feedback of one partition.
    """

    window_ms: int
    wait_ms: int
    allowance_ms: int
    max_pending_bytes: int


@dataclass(slots=True)
class _Kept:
    """One answer within its window. `last_feedback` is the highest offset of feedback that was joined with it."""

    generation: Generation
    offset: int
    cost_bytes: int
    last_feedback: int = -1
    is_retired: bool = False


class CuratorPartition:
    """The curation of one partition. Feed it records in offset order per topic, and ticks; write what it returns in order.

    Attributes:
        counts: what happened so far, by name; only grows.
    """

    def __init__(
        self,
        partition: int,
        config: CurateConfig,
        seen: Seen,
        partition_of: Callable[[str], int],
        *,
        generations_start: int = 0,
        feedback_start: int = 0,
    ) -> None:
        """`partition_of` maps a user id to the partition where its records belong; the starts are where the logs are taken up."""
        self.counts: Counter[str] = Counter()
        self._partition = partition
        self._config = config
        self._seen = seen
        self._partition_of = partition_of
        self._generations = LogPosition(generations_start)
        self._feedback = LogPosition(feedback_start)
        self._kept: dict[str, _Kept] = {}  # by request id, in offset order
        self._retirements: list[tuple[int, int, _Kept]] = []  # heap by the end of the window
        self._held: list[_Kept] = []  # retired, with feedback that may be read again
        self._waiting: dict[int, tuple[Feedback, Record]] = {}  # by offset, in offset order
        self._waiting_of: dict[str, set[int]] = {}  # offsets by request id
        self._pending_bytes = 0

    @property
    def pending_bytes(self) -> int:
        """Memory of kept answers and waiting feedback, estimated."""
        return self._pending_bytes

    def may_read_generations(self) -> bool:
        """False while memory is half full and feedback of an earlier time is still unread."""
        return self._may_read(self._generations, self._feedback)

    def may_read_feedback(self) -> bool:
        """False while memory is half full and answers of an earlier time are still unread."""
        return self._may_read(self._feedback, self._generations)

    def _may_read(self, own: LogPosition, other: LogPosition) -> bool:
        if self._pending_bytes * 2 < self._config.max_pending_bytes:
            return True
        return other.is_caught_up or own.max_time_ms <= other.max_time_ms

    def on_malformed_generation(self, record: Record, detail: str) -> list[Emission]:
        """Set an unreadable answer aside."""
        return self._set_aside(record, reasons.MALFORMED, detail) if self._generations.advance(record.offset) else []

    def on_malformed_feedback(self, record: Record, detail: str) -> list[Emission]:
        """Set feedback about an answer aside that breaks the contract."""
        return self._set_aside(record, reasons.MALFORMED, detail) if self._feedback.advance(record.offset) else []

    def on_unreadable_feedback(self, offset: int) -> None:
        """Step over feedback that cannot even be parsed: the joiner sets it aside."""
        self._feedback.advance(offset)

    def on_generation(self, generation: Generation, record: Record) -> list[Emission]:
        """Keep one answer, and curate the feedback that waited for it."""
        if not self._generations.advance(record.offset):
            return []
        self._generations.max_time_ms = max(self._generations.max_time_ms, generation.finished_at_ms)
        if generation.request_id in self._kept:
            self.counts["duplicate_generations"] += 1
            return []
        self.counts["generations"] += 1
        kept = _Kept(generation, record.offset, len(record.value or b"") + _OVERHEAD_BYTES)
        self._kept[generation.request_id] = kept
        self._pending_bytes += kept.cost_bytes
        heapq.heappush(self._retirements, (generation.finished_at_ms + self._config.window_ms, record.offset, kept))
        emissions: list[Emission] = []
        for offset in sorted(self._waiting_of.get(generation.request_id, ())):
            emissions += self._curate(kept, *self._take_waiting(offset))
        return emissions + self._shed()

    def on_feedback(self, feedback: Feedback, record: Record) -> list[Emission]:
        """Take one feedback in: curate it, let it wait for its answer, or set it aside."""
        if not self._feedback.advance(record.offset):
            return []
        self._feedback.max_time_ms = max(self._feedback.max_time_ms, feedback.accepted_at_ms)
        if not is_about_answer(feedback.kind, feedback.item_id):
            return []
        if self._partition_of(feedback.user_id) != self._partition:
            self.counts["misplaced"] += 1  # the joiner forwards it to its partition
            return []
        self.counts["feedback"] += 1
        kept = self._kept.get(feedback.request_id)
        if kept is not None:
            return self._curate(kept, feedback, record)
        self._waiting[record.offset] = (feedback, record)
        self._waiting_of.setdefault(feedback.request_id, set()).add(record.offset)
        self._pending_bytes += _waiting_cost(record)
        return self._shed()

    def on_tick(self, now_ms: int, *, generations_end: int | None, feedback_end: int | None) -> tuple[list[Emission], Cut]:
        """Retire answers, give up on feedback whose answer did not come, and say what may be committed.

        Args:
            now_ms: wall clock, Unix milliseconds.
            generations_end: the answers' log's end, asked for at or after `now_ms`; None when it could not be had.
            feedback_end: the same of the feedback log.
        """
        self._generations.end, self._feedback.end = generations_end, feedback_end
        generations_ms = self._generations.watermark_ms(now_ms, self._config.allowance_ms)
        read_ms = min(generations_ms, self._feedback.watermark_ms(now_ms, self._config.allowance_ms))
        while self._retirements and self._retirements[0][0] <= read_ms:
            self._retire(heapq.heappop(self._retirements)[2])
        horizon_ms = generations_ms - self._config.wait_ms
        overdue = [offset for offset, (feedback, _) in self._waiting.items() if feedback.accepted_at_ms <= horizon_ms]
        emissions: list[Emission] = []
        for offset in overdue:
            emissions += self._orphan(offset, f"no answer of its request came within {self._config.wait_ms} ms")
        return emissions, self._cut()

    def _curate(self, kept: _Kept, feedback: Feedback, record: Record) -> list[Emission]:
        kept.last_feedback = max(kept.last_feedback, record.offset)
        generation = kept.generation
        if feedback.user_id != generation.user_id:
            return self._set_aside(record, reasons.USER_MISMATCH, "its request was another user's", feedback.feedback_id)
        example = example_of(generation, feedback)
        if not example.is_demonstration and generation.finish_reason == _BROKEN:
            self.counts["broken_answers"] += 1  # the judgement is about the machine
            return []
        found = sorted({kind for text in _written_by_people(example) for kind in kinds_in(text)})
        if found:
            for kind in found:
                self.counts[f"pii_{kind}"] += 1
            return self._set_aside(record, reasons.PII, f"it holds {', '.join(found)}", feedback.feedback_id, without_content=True)
        if self._seen.has(example.example_id):
            self.counts["duplicates"] += 1
            return []
        self._seen.add(example.example_id)
        self.counts["demonstrations" if example.is_demonstration else "judged"] += 1
        return [example]

    def _take_waiting(self, offset: int) -> tuple[Feedback, Record]:
        feedback, record = self._waiting.pop(offset)
        offsets = self._waiting_of[feedback.request_id]
        offsets.remove(offset)
        if not offsets:
            del self._waiting_of[feedback.request_id]
        self._pending_bytes -= _waiting_cost(record)
        return feedback, record

    def _orphan(self, offset: int, detail: str) -> list[Emission]:
        feedback, record = self._take_waiting(offset)
        return self._set_aside(record, reasons.ORPHAN, detail, feedback.feedback_id)

    def _set_aside(
        self, record: Record, reason: str, detail: str, feedback_id: str = "", *, without_content: bool = False
    ) -> list[Emission]:
        self.counts[reason] += 1
        return [DeadLetter(record, reason, detail, feedback_id, without_content)]

    def _retire(self, kept: _Kept) -> None:
        if kept.is_retired:
            return
        kept.is_retired = True
        del self._kept[kept.generation.request_id]
        self._pending_bytes -= kept.cost_bytes
        if kept.last_feedback >= 0:
            self._held.append(kept)

    def _shed(self) -> list[Emission]:
        """Make room: the oldest answers are retired before their time, then the oldest waiting feedback is given up on."""
        emissions: list[Emission] = []
        while self._pending_bytes > self._config.max_pending_bytes and (self._kept or self._waiting):
            if self._kept:
                self._retire(next(iter(self._kept.values())))
                self.counts["retired_early"] += 1
            else:
                emissions += self._orphan(next(iter(self._waiting)), "no room to wait longer for its answer")
        return emissions

    def _cut(self) -> Cut:
        feedback_floor = next(iter(self._waiting), self._feedback.next_offset)
        self._held = [kept for kept in self._held if kept.last_feedback >= feedback_floor]
        oldest = next(iter(self._kept.values()), None)
        generations_floor = min([self._generations.next_offset if oldest is None else oldest.offset, *(kept.offset for kept in self._held)])
        return Cut(generations_floor, feedback_floor)


def example_of(generation: Generation, feedback: Feedback) -> Example:
    """Return the example that a feedback makes of an answer."""
    is_demonstration = feedback.kind == DEMONSTRATION
    answer = feedback.text.strip() if is_demonstration else generation.answer
    judgement = () if is_demonstration else (feedback.kind, repr(feedback.value), feedback.text)
    digest = hashlib.blake2b(digest_size=16, person=b"tm.example")
    for part in (generation.task, *(text for message in generation.messages for text in message), answer, *judgement):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return Example(
        example_id=digest.hexdigest(), is_demonstration=is_demonstration, generation=generation, feedback=feedback, answer=answer
    )


def _written_by_people(example: Example) -> list[str]:
    """The last turn is the template's, around the question and the passages; system turns are the template's too."""
    generation = example.generation
    messages = generation.messages if generation.context_given else generation.messages[:-1]
    turns = [message.content for message in messages if message.role != "system" or generation.context_given]
    return [generation.question, *turns, example.answer, example.feedback.text]


def _waiting_cost(record: Record) -> int:
    return _OVERHEAD_BYTES + len(record.value or b"")
