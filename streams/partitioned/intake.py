"""One partition's intake: how far its two topics have been read, what waits, and what is set aside. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from services.common.events import dead_letter_reasons as reasons
from services.common.events.feedback import Feedback
from streams.partitioned.position import LogPosition
from streams.partitioned.records import DeadLetter, Record
from streams.partitioned.waiting import WaitingFeedback


class Intake:
    """The two sides of a join: subjects (exposures, answers) and the feedback about them. The join itself uses it, and the runtime.

    Attributes:
        counts: what happened so far, by event; only grows.
        subjects: how far the topic of the subjects has been read.
        feedback: how far the topic of the feedback has been read.
        waiting: feedback whose subject has not been read yet.
        kept_bytes: memory of the subjects that are kept; the join counts it.
        allowance_ms: how far events may be out of order, or under way to the broker, when a topic has been read to its end.
        feedback_done: feedback below this offset was set aside before a restart, if it had to be, and is not set aside again.
    """

    def __init__(
        self,
        partition: int,
        starts: tuple[int, int],
        partition_of: Callable[[str], int],
        *,
        allowance_ms: int,
        max_pending_bytes: int,
    ) -> None:
        """Nothing is read yet.

        Args:
            partition: its number.
            starts: the offsets at which the subjects and the feedback are taken up.
            partition_of: from a user id to the partition where the user's records belong.
            allowance_ms: see there.
            max_pending_bytes: bound on the memory of kept subjects and waiting feedback.
        """
        self.counts: Counter[str] = Counter()
        self.subjects, self.feedback = (LogPosition(start) for start in starts)
        self.waiting = WaitingFeedback()
        self.kept_bytes = 0
        self.feedback_done = 0
        self._partition = partition
        self._partition_of = partition_of
        self.allowance_ms = allowance_ms
        self._max_pending_bytes = max_pending_bytes
        self._now_ms = 0

    @property
    def pending_bytes(self) -> int:
        """Estimate of the memory of kept subjects and waiting feedback."""
        return self.kept_bytes + self.waiting.cost_bytes

    @property
    def is_overfull(self) -> bool:
        """Whether something must go."""
        return self.pending_bytes > self._max_pending_bytes

    def owner_elsewhere(self, user_id: str) -> int | None:
        """Return the partition where a user's records belong when it is another than this one."""
        owner = self._partition_of(user_id)
        return None if owner == self._partition else owner

    def may_read_subjects(self) -> bool:
        """False while memory is half full and feedback of an earlier time is still unread: reading on would only pile up subjects."""
        return self._may_lead(self.subjects, self.feedback)

    def may_read_feedback(self) -> bool:
        """False while memory is half full and subjects of an earlier time are still unread."""
        return self._may_lead(self.feedback, self.subjects)

    def _may_lead(self, own: LogPosition, other: LogPosition) -> bool:
        return self.pending_bytes * 2 < self._max_pending_bytes or other.is_caught_up or own.max_time_ms <= other.max_time_ms

    def watermarks_ms(self, now_ms: int, ends: tuple[int | None, int | None]) -> tuple[int, int]:
        """Return up to when the subjects and the feedback have been read.

        Args:
            now_ms: wall clock, Unix milliseconds.
            ends: where the two logs end, asked for at or after `now_ms`; None when the broker did not say.
        """
        self.subjects.end, self.feedback.end = ends
        self.waiting.meet(now_ms)
        self._now_ms = now_ms
        return self.subjects.watermark_ms(now_ms, self.allowance_ms), self.feedback.watermark_ms(now_ms, self.allowance_ms)

    def on_unusable_subject(self, record: Record, reason: str, detail: str) -> list[DeadLetter]:
        """Take in a subject that the join must not see."""
        return self.set_aside(record, reason, detail) if self.subjects.advance(record.offset) else []

    def on_unusable_feedback(self, record: Record, reason: str, detail: str) -> list[DeadLetter]:
        """Take in feedback that the join must not see."""
        return self.set_feedback_aside(record, reason, detail) if self.feedback.advance(record.offset) else []

    def give_up_on_waiting(self, subjects_ms: int, wait_ms: int, detail: str) -> list[DeadLetter]:
        """Set the feedback aside that has waited for so long: subjects of its time were read, and it has been here all that time.

        When a broker is back, feedback that a producer held meanwhile may be written before the subjects that the router held: by its time
        alone it would be given up at once.

        Args:
            subjects_ms: up to when subjects have been read, of `watermarks_ms`.
            wait_ms: how long.
            detail: for people.
        """
        overdue = self.waiting.take_overdue(accepted_until_ms=subjects_ms - wait_ms, met_until_ms=self._now_ms - wait_ms)
        return [letter for feedback, record in overdue for letter in self._orphan(feedback, record, detail)]

    def give_up_on_first(self, detail: str) -> list[DeadLetter]:
        """Set aside what waits with the lowest offset. Something must be waiting."""
        return self._orphan(*self.waiting.take_first(), detail)

    def _orphan(self, feedback: Feedback, record: Record, detail: str) -> list[DeadLetter]:
        return self.set_feedback_aside(record, reasons.ORPHAN, detail, feedback.feedback_id)

    def set_feedback_aside(
        self, record: Record, reason: str, detail: str, feedback_id: str = "", *, without_content: bool = False
    ) -> list[DeadLetter]:
        """Return the dead letter of feedback, unless it was set aside before a restart."""
        if record.offset < self.feedback_done:
            self.counts["known_before_restart"] += 1
            return []
        return self.set_aside(record, reason, detail, feedback_id, without_content=without_content)

    def set_aside(
        self, record: Record, reason: str, detail: str, feedback_id: str = "", *, without_content: bool = False
    ) -> list[DeadLetter]:
        """Return the dead letter of a record, and count it by its reason."""
        self.counts[reason] += 1
        return [DeadLetter(record, reason, detail, feedback_id, without_content)]
