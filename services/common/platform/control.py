"""control.v1 folded: lineage, epochs and aliases, and what to write to change them. Pure.

Each subject has a version that counts up by one per change. A record is believed when its version is higher than the subject's; one
that is not was written by somebody who had not seen the newest state, and is ignored. That rule gives the same state for the whole log
and for what compaction leaves of it, with one exception: compaction keeps the last record of a subject even when it had been ignored.
Therefore a writer whose record did not land right behind the state that it had seen (`offset != position`) has to look again, and a
writer that lost writes the winner's value once more, under a higher version (`reassertion`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunemesh.events.v1.control_pb2 import Alias, ControlRecord, EpochClaim, Lineage

from services.common.platform.errors import Conflict, NotFound

LINEAGE_SUBJECT = "lineage"
ALIAS_PREFIX = "alias/"


def epoch_subject(model: str) -> str:
    """Return the subject of a model's epoch claims."""
    return f"epoch/{model}"


def alias_subject(alias: str) -> str:
    """Return the subject of an alias such as "ranker/production"."""
    return f"{ALIAS_PREFIX}{alias}"


class AliasConflict(Conflict):
    """The alias is not at the version that the caller expected. Read it, then decide again."""


class AliasNotFound(NotFound):
    """The alias was never set. Retrying does not help."""


@dataclass
class ControlState:
    """The newest believed record of every subject."""

    records: dict[str, ControlRecord] = field(default_factory=dict)

    def apply(self, record: ControlRecord) -> bool:
        """Fold one record, in log order. Return whether it was believed."""
        if record.version <= self.version(record.subject):
            return False
        self.records[record.subject] = record
        return True

    def version(self, subject: str) -> int:
        """Return the subject's version; 0 when it was never set."""
        record = self.records.get(subject)
        return record.version if record is not None else 0

    @property
    def lineage_id(self) -> str:
        """The id of this broker's history; empty when no trainer has given it one yet."""
        record = self.records.get(LINEAGE_SUBJECT)
        return record.lineage.lineage_id if record is not None else ""

    def epoch_claim(self, model: str) -> EpochClaim | None:
        """Return the newest claim for the model, or None."""
        record = self.records.get(epoch_subject(model))
        return record.epoch_claim if record is not None else None

    def epoch(self, model: str) -> int:
        """Return the newest claimed epoch of the model; 0 when there is none."""
        claim = self.epoch_claim(model)
        return claim.epoch if claim is not None else 0

    def alias(self, alias: str) -> ControlRecord:
        """Return the alias's newest record: its target, the one before, its version.

        Raises:
            AliasNotFound: it was never set.
        """
        record = self.records.get(alias_subject(alias))
        if record is None:
            raise AliasNotFound(f"alias {alias!r} was never set")
        return record

    def lineage_change(self, lineage_id: str, *, now_ms: int, actor: str) -> ControlRecord:
        """Return the record that gives the broker's history an id."""
        return self._change(LINEAGE_SUBJECT, ControlRecord(lineage=Lineage(lineage_id=lineage_id)), now_ms, actor)

    def epoch_change(self, claim: EpochClaim, *, now_ms: int, actor: str) -> ControlRecord:
        """Return the record that claims an epoch."""
        return self._change(epoch_subject(claim.model), ControlRecord(epoch_claim=claim), now_ms, actor)

    def alias_change(self, alias: str, target: str, expected_version: int, *, now_ms: int, actor: str) -> ControlRecord:
        """Return the record that moves an alias.

        Raises:
            AliasConflict: its version is not `expected_version` (0: must not exist).
        """
        subject = alias_subject(alias)
        if expected_version != self.version(subject):
            raise AliasConflict(f"alias {alias!r} is at version {self.version(subject)}, not {expected_version}: read it and decide again")
        known = self.records.get(subject)
        previous = known.alias.target if known is not None else ""
        return self._change(subject, ControlRecord(alias=Alias(target=target, previous_target=previous)), now_ms, actor)

    def reassertion(self, subject: str, *, above: int, now_ms: int, actor: str) -> ControlRecord:
        """Return the subject's value once more, under a version above every record that was ignored."""
        again = ControlRecord()
        again.CopyFrom(self.records[subject])
        again.version, again.changed_at_ms, again.actor = max(above, again.version) + 1, now_ms, actor
        return again

    def _change(self, subject: str, record: ControlRecord, now_ms: int, actor: str) -> ControlRecord:
        record.subject, record.version = subject, self.version(subject) + 1
        record.changed_at_ms, record.actor = now_ms, actor
        return record


def fold(records: Iterable[ControlRecord]) -> ControlState:
    """Return the state that the records, in log order, describe."""
    state = ControlState()
    for record in records:
        state.apply(record)
    return state
