"""Which dead letters are to be put back, decided from a dead-letter topic alone. Pure.

The topic is its own record of what was put back. A letter is named by (source topic, partition, offset, reason); a letter repeated by its
writer is one letter. Before a run sends anything it writes a claim for each letter, and afterwards a note that the letter is done:

- a letter with a note is never sent again;
- of several claims the first one counts, so two runs at once do not both send;
- a claim without a note, of a run that is over, may have been sent: whether it was is looked up in the source topic, where every record
  that was put back carries its letter's name in the header `tunemesh-redriven`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letter_reasons import REDRIVE_CLAIMED, REDRIVEN
from services.common.events.dead_letters import REDRIVEN_HEADER
from services.common.platform.kafka_batches import CONTENT_TYPE_UNREADABLE

_CUT = "(value cut from "


class LetterName(NamedTuple):
    """What makes two letters one."""

    source_topic: str
    source_partition: int
    source_offset: int
    reason: str

    def __str__(self) -> str:
        """As it stands in the header."""
        return f"{self.source_topic}/{self.source_partition}/{self.source_offset}/{self.reason}"


class Claim(NamedTuple):
    """One run's intention to put a letter back."""

    run_id: str
    claimed_at_ms: int


@dataclass(slots=True)
class Letter:
    """One letter: its offset in the dead-letter topic, its body, who wants to put it back, and whether that is done."""

    offset: int
    body: DeadLetter
    claims: list[Claim] = field(default_factory=list)
    is_done: bool = False

    @property
    def name(self) -> LetterName:
        """Return its name."""
        return LetterName(self.body.source_topic, self.body.source_partition, self.body.source_offset, self.body.reason)

    @property
    def came_back(self) -> bool:
        """Whether its record had been put back once already, and failed again."""
        return REDRIVEN_HEADER in self.body.headers

    @property
    def why_not(self) -> str:
        """Return why it can never be put back; empty when it can."""
        if not self.body.value:
            return "its record was not kept"
        if self.body.headers.get("content-type") == CONTENT_TYPE_UNREADABLE.encode():
            return "it stands for records that could not be decoded: read them from the source topic once the codec's package is there"
        return "its record was cut" if _CUT in self.body.detail else ""

    @property
    def state(self) -> str:
        """Return what became of it, for people."""
        if self.is_done:
            return "redriven"
        return self.why_not or ("came back after a redrive" if self.came_back else "claimed" if self.claims else "pending")


class LetterBook:
    """All letters of one dead-letter topic, oldest first."""

    def __init__(self) -> None:
        """Empty: `add` every record in offset order."""
        self.letters: dict[LetterName, Letter] = {}

    def add(self, offset: int, body: DeadLetter) -> None:
        """Take a record of the topic in: a letter, or a claim or note, whose `detail` is the letter's reason and the run."""
        if body.reason not in (REDRIVE_CLAIMED, REDRIVEN):
            letter = Letter(offset, body)
            self.letters.setdefault(letter.name, letter)
            return
        reason, _, run_id = body.detail.partition(" ")
        known = self.letters.get(LetterName(body.source_topic, body.source_partition, body.source_offset, reason))
        if known is None:
            return  # the broker has deleted the letter itself
        if body.reason == REDRIVEN:
            known.is_done = True
        else:
            known.claims.append(Claim(run_id, body.failed_at_ms))

    def pending(self, *, reason: str = "", again: bool = False) -> list[Letter]:
        """Return the letters that may be put back, oldest first.

        Args:
            reason: only those; empty: all.
            again: also letters whose record had been put back before and failed again.
        """
        return [
            letter
            for letter in self.letters.values()
            if not letter.is_done
            and not letter.why_not
            and (again or not letter.came_back)
            and (not reason or letter.body.reason == reason)
        ]

    def not_redrivable(self, *, reason: str = "") -> list[Letter]:
        """Return the letters that can never be put back, oldest first; of a reason, where it is named."""
        return [letter for letter in self.letters.values() if letter.why_not and not letter.is_done and reason in ("", letter.body.reason)]

    def summary(self) -> list[dict[str, object]]:
        """Return one row per reason: letters, those put back, those that cannot be, and the first and last failure, Unix milliseconds."""
        rows = []
        for reason in sorted({letter.body.reason for letter in self.letters.values()}):
            letters = [letter for letter in self.letters.values() if letter.body.reason == reason]
            failed = [letter.body.failed_at_ms for letter in letters]
            rows.append(
                {
                    "reason": reason,
                    "letters": len(letters),
                    "redriven": sum(letter.is_done for letter in letters),
                    "came_back": sum(letter.came_back for letter in letters),
                    "not_redrivable": sum(bool(letter.why_not) for letter in letters),
                    "first_ms": min(failed),
                    "last_ms": max(failed),
                }
            )
        return rows


def unresolved(letters: Sequence[Letter], *, now_ms: int, claim_ttl_ms: int) -> tuple[list[Letter], list[Letter]]:
    """Split letters that other runs have claimed: (those of runs that may be at it still, those of runs that are over)."""
    claimed = [letter for letter in letters if letter.claims]
    fresh = [letter for letter in claimed if max(claim.claimed_at_ms for claim in letter.claims) > now_ms - claim_ttl_ms]
    return fresh, [letter for letter in claimed if letter not in fresh]


def won(letters: Iterable[Letter], run_id: str, *, since_ms: int) -> list[Letter]:
    """Return the letters whose first claim made since then is this run's."""
    mine = []
    for letter in letters:
        recent = [claim for claim in letter.claims if claim.claimed_at_ms >= since_ms]
        if recent and recent[0].run_id == run_id and not letter.is_done:
            mine.append(letter)
    return mine


def note(letter: Letter, kind: str, run_id: str, now_ms: int) -> DeadLetter:
    """Return the record that claims a letter (REDRIVE_CLAIMED) or says that it is done (REDRIVEN)."""
    name = letter.name
    return DeadLetter(
        source_topic=name.source_topic,
        source_partition=name.source_partition,
        source_offset=name.source_offset,
        reason=kind,
        detail=f"{name.reason} {run_id}",
        failed_at_ms=now_ms,
    )


def counted(letters: Iterable[Letter]) -> dict[str, int]:
    """Return the number of letters by reason."""
    return dict(Counter(letter.body.reason for letter in letters))
