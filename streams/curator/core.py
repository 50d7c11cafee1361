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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.events import dead_letter_reasons as reasons
from services.common.events.feedback import Feedback
from services.common.events.feedback_kinds import ANSWER_KINDS, ExampleRule
from services.common.events.generation import Generation
from streams.curator.model import Cut, Emission, Example
from streams.curator.pii import kinds_in
from streams.partitioned.intake import Intake
from streams.partitioned.records import Record

# What a kept answer costs beside its record's value.
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
    """

    window_ms: int
    wait_ms: int


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
        intake: answers are its subjects.
    """

    def __init__(self, config: CurateConfig, intake: Intake, seen: Seen) -> None:
        """`seen` is the process's."""
        self.intake = intake
        self._config = config
        self._counts = intake.counts
        self._seen = seen
        self._kept: dict[str, _Kept] = {}  # by request id, in offset order
        self._retirements: list[tuple[int, int, _Kept]] = []  # heap by the end of the window
        self._held: list[_Kept] = []  # retired, with feedback that may be read again

    def on_generation(self, generation: Generation, record: Record) -> Sequence[Emission]:
        """Keep one answer, and curate the feedback that waited for it."""
        if not self.intake.subjects.advance(record.offset):
            return []
        self.intake.subjects.reach(generation.finished_at_ms)
        if generation.request_id in self._kept:
            self._counts["duplicate_generations"] += 1
            return []
        self._counts["generations"] += 1
        kept = _Kept(generation, record.offset, len(record.value or b"") + _OVERHEAD_BYTES)
        self._kept[generation.request_id] = kept
        self.intake.kept_bytes += kept.cost_bytes
        heapq.heappush(self._retirements, (generation.finished_at_ms + self._config.window_ms, record.offset, kept))
        emissions: list[Emission] = []
        for feedback, waited in self.intake.waiting.take_of(generation.request_id):
            emissions += self._curate(kept, feedback, waited)
        emissions += self._shed()
        return emissions

    def on_feedback(self, feedback: Feedback | None, record: Record) -> Sequence[Emission]:
        """Take one feedback in: curate it, let it wait for its answer, or set it aside. None cannot be parsed; the joiner sets it aside."""
        if not self.intake.feedback.advance(record.offset) or feedback is None:
            return []
        self.intake.feedback.reach(feedback.accepted_at_ms)
        if not feedback.is_about_answer:
            return []
        if self.intake.owner_elsewhere(feedback.user_id) is not None:
            self._counts["misplaced"] += 1  # the joiner forwards it to its partition
            return []
        self._counts["feedback"] += 1
        kept = self._kept.get(feedback.request_id)
        if kept is not None:
            return self._curate(kept, feedback, record)
        self.intake.waiting.add(feedback, record)
        return self._shed()

    def on_tick(self, now_ms: int, ends: tuple[int | None, int | None]) -> tuple[Sequence[Emission], Cut]:
        """Retire answers, give up on feedback whose answer did not come, and say what may be committed.

        Args:
            now_ms: wall clock, Unix milliseconds.
            ends: where answers and feedback end, as for Intake.watermarks_ms.
        """
        generations_ms, feedback_ms = self.intake.watermarks_ms(now_ms, ends)
        read_ms = min(generations_ms, feedback_ms)
        while self._retirements and self._retirements[0][0] <= read_ms:
            self._retire(heapq.heappop(self._retirements)[2])
        wait_ms = self._config.wait_ms
        orphans = self.intake.give_up_on_waiting(generations_ms - wait_ms, f"no answer of its request came within {wait_ms} ms")
        return orphans, self._cut()

    def _curate(self, kept: _Kept, feedback: Feedback, record: Record) -> Sequence[Emission]:
        kept.last_feedback = max(kept.last_feedback, record.offset)
        generation = kept.generation
        if feedback.user_id != generation.user_id:
            return self.intake.set_feedback_aside(record, reasons.USER_MISMATCH, "its request was another user's", feedback.feedback_id)
        example = example_of(generation, feedback)
        if not example.is_demonstration and generation.finish_reason == _BROKEN:
            self._counts["broken_answers"] += 1  # the judgement is about the machine
            return []
        found = sorted({kind for text in _written_by_people(example) for kind in kinds_in(text)})
        if found:
            for kind in found:
                self._counts[f"pii_{kind}"] += 1
            detail = f"it holds {', '.join(found)}"
            return self.intake.set_feedback_aside(record, reasons.PII, detail, feedback.feedback_id, without_content=True)
        if self._seen.has(example.example_id):
            self._counts["duplicates"] += 1
            return []
        self._seen.add(example.example_id)
        self._counts["demonstrations" if example.is_demonstration else "judged"] += 1
        return [example]

    def _retire(self, kept: _Kept) -> None:
        if kept.is_retired:
            return
        kept.is_retired = True
        del self._kept[kept.generation.request_id]
        self.intake.kept_bytes -= kept.cost_bytes
        if kept.last_feedback >= 0:
            self._held.append(kept)

    def _shed(self) -> Sequence[Emission]:
        """Make room: the oldest answers are retired before their time, then the oldest waiting feedback is given up on."""
        emissions: list[Emission] = []
        while self.intake.is_overfull and (self._kept or self.intake.waiting):
            if self._kept:
                self._retire(next(iter(self._kept.values())))
                self._counts["retired_early"] += 1
            else:
                emissions += self.intake.give_up_on_first("no room to wait longer for its answer")
        return emissions

    def _cut(self) -> Cut:
        feedback_floor = self.intake.waiting.first_offset(default=self.intake.feedback.next_offset)
        self._held = [kept for kept in self._held if kept.last_feedback >= feedback_floor]
        oldest = next(iter(self._kept.values()), None)
        generations_floor = min(
            [self.intake.subjects.next_offset if oldest is None else oldest.offset, *(kept.offset for kept in self._held)]
        )
        return Cut(generations_floor, feedback_floor)


def example_of(generation: Generation, feedback: Feedback) -> Example:
    """Return the example that a feedback makes of an answer."""
    is_demonstration = ANSWER_KINDS[feedback.kind].example is ExampleRule.DEMONSTRATION
    answer = feedback.text.strip() if is_demonstration else generation.answer
    judgement = () if is_demonstration else (feedback.kind, repr(feedback.value), feedback.text)
    digest = hashlib.blake2b(digest_size=16, person=b"tm.example")
    turns = (text for message in generation.messages for text in (message.role, message.content))
    for part in (generation.task, *turns, answer, *judgement):
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
