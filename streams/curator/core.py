"""The curation of one partition: answers and feedback about them become examples. Pure: no I/O, no clock, no randomness.

Answers lie in a store on disk, by request id, until `window_ms` after their end; an answer is committed when the store has it. Feedback is
committed when it became an example or was set aside. Examples that stand in the log already (`Seen`) are not written twice, so whatever is
read again changes nothing.

Feedback waits for its answer until the answers' log has been read to a time later by `wait_ms` than the feedback. Only what waits is in
memory, bounded by the intake: beyond its bound the oldest feedback is given up on.

What people wrote (the question, earlier turns, passages that came with the request, the answer, a comment) must be free of personal
data; retrieved passages and the template's own words are the operator's, and are not looked at.
"""

from __future__ import annotations

import hashlib
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


class Answers(Protocol):
    """The answers of a partition that may get feedback, kept outside of memory."""

    def offset_of(self, request_id: str) -> int | None:
        """Return the offset of the answer to a request; None when it is not there."""
        ...

    def get(self, request_id: str) -> Generation | None:
        """Return the answer to a request; None when it is not there."""
        ...

    def put(self, generation: Generation, record: Record) -> None:
        """Take an answer in, with the record that it was read from."""
        ...

    def flush(self, next_offset: int) -> int:
        """Write what was taken in, and that everything below `next_offset` has been; return how many answers had to go for want of room."""
        ...

    def expire(self, before_ms: int) -> int:
        """Delete the answers that ended before a time; return how many."""
        ...


class CuratorPartition:
    """The curation of one partition. Feed it records in offset order per topic, and ticks; write what it returns in order.

    Attributes:
        intake: answers are its subjects.
    """

    def __init__(self, config: CurateConfig, intake: Intake, answers: Answers, seen: Seen) -> None:
        """`answers` are the partition's, `seen` is the process's."""
        self.intake = intake
        self._config = config
        self._counts = intake.counts
        self._answers = answers
        self._seen = seen

    def on_generation(self, generation: Generation, record: Record) -> Sequence[Emission]:
        """Keep one answer, and curate the feedback that waited for it."""
        if not self.intake.subjects.advance(record.offset):
            return []
        self.intake.subjects.reach(generation.finished_at_ms)
        known = self._answers.offset_of(generation.request_id)
        if known is not None and known != record.offset:
            self._counts["duplicate_generations"] += 1
            return []
        self._counts["generations"] += 1
        self._answers.put(generation, record)
        emissions: list[Emission] = []
        for feedback, waited in self.intake.waiting.take_of(generation.request_id):
            emissions += self._curate(generation, feedback, waited)
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
        generation = self._answers.get(feedback.request_id)
        if generation is not None:
            return self._curate(generation, feedback, record)
        self.intake.waiting.add(feedback, record)
        return self._shed()

    def on_tick(self, now_ms: int, ends: tuple[int | None, int | None]) -> tuple[Sequence[Emission], Cut]:
        """Delete answers whose window is over, give up on feedback whose answer did not come, and say what may be committed.

        Args:
            now_ms: wall clock, Unix milliseconds.
            ends: where answers and feedback end, as for Intake.watermarks_ms.
        """
        generations_ms, feedback_ms = self.intake.watermarks_ms(now_ms, ends)
        self._counts["retired_early"] += self._answers.flush(self.intake.subjects.next_offset)
        self._answers.expire(min(generations_ms, feedback_ms) - self._config.window_ms)
        wait_ms = self._config.wait_ms
        orphans = self.intake.give_up_on_waiting(generations_ms, wait_ms, f"no answer of its request came within {wait_ms} ms")
        feedback_floor = self.intake.waiting.first_offset(default=self.intake.feedback.next_offset)
        return orphans, Cut(self.intake.subjects.next_offset, feedback_floor)

    def _curate(self, generation: Generation, feedback: Feedback, record: Record) -> Sequence[Emission]:
        if feedback.accepted_at_ms > generation.finished_at_ms + self._config.window_ms:
            detail = f"its answer had ended more than {self._config.window_ms} ms before"
            return self.intake.set_feedback_aside(record, reasons.ORPHAN, detail, feedback.feedback_id)
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

    def _shed(self) -> Sequence[Emission]:
        """Make room: the oldest waiting feedback is given up on."""
        emissions: list[Emission] = []
        while self.intake.is_overfull and self.intake.waiting:
            emissions += self.intake.give_up_on_first("no room to wait longer for its answer")
        return emissions


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
