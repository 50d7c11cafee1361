"""Which delta may be applied and which base is to be loaded. Pure: it is told what the log says and never touches a table.

The rules:

- Deltas of an epoch apply in the order of their seq, each naming the one before. One that was applied already is skipped; when one is
  missing, following stops until a base brings what is missing.
- A delta of an older epoch comes from a trainer that was superseded: refused.
- A newer epoch begins with its first delta (prev_seq -1), and only on top of the base that it names; if this replica does not contain that
  base, it loads it. Nor may it lack what the new epoch continues from: the last delta of the epoch before may be the one that is missing.
- A base that does not bring what is missing is not loaded, nor one from which following got stuck before: the log does not change.
- A replica that can neither follow nor load a base asks for one (`Standing.blocked`); the trainer hears it through replicas.v1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from services.common.ranker.tables.control_block import Applied

NO_SEQ = -1
# Longer ids would not fit the control block of the tables.
_MAX_BASE_ID_BYTES = 128


class DeltaHeader(Protocol):
    """What is looked at of a delta; tunemesh.events.v1.DeltaHeader has it."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def schema_hash(self) -> str: ...  # noqa: D102
    @property
    def lineage_id(self) -> str: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def shard(self) -> int: ...  # noqa: D102
    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def prev_seq(self) -> int: ...  # noqa: D102
    @property
    def base_id(self) -> str: ...  # noqa: D102
    @property
    def continues_epoch(self) -> int: ...  # noqa: D102
    @property
    def continues_seq(self) -> int: ...  # noqa: D102


class BasePointer(Protocol):
    """What is looked at of an announced base; tunemesh.events.v1.BasePointer has it."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def base_id(self) -> str: ...  # noqa: D102
    @property
    def uri(self) -> str: ...  # noqa: D102
    @property
    def schema_hash(self) -> str: ...  # noqa: D102
    @property
    def lineage_id(self) -> str: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def delta_offsets(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def manifest_crc32c(self) -> int: ...  # noqa: D102


class HistoryLost(Exception):
    """The broker does not have, or not any more, the offset that was to be read next. A base is needed."""


class Outcome(Enum):
    """What to do with a delta."""

    APPLY = "applied"
    SKIP = "skipped"
    REFUSE = "refused"
    BLOCK = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a base must contain so that following can go on: at least epoch.seq, or it is the base with this id."""

    epoch: int
    seq: int
    base_id: str = ""

    def is_met_by(self, pointer: BasePointer) -> bool:
        """Return whether this base helps."""
        return (pointer.epoch, pointer.seq) >= (self.epoch, self.seq) or (bool(self.base_id) and pointer.base_id == self.base_id)


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome; unless it is APPLY, why; if it is BLOCK, what is needed."""

    outcome: Outcome
    reason: str = ""
    need: Need | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose deltas this replica takes."""

    model: str
    schema_hash: str
    shard: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What replicas.v1 is told.

    Attributes:
        applied: what the tables contain; None: nothing yet.
        blocked: why this replica needs a base that has not been announced yet; empty while it needs none.
        newest_base_id: of the base announced last that it knows of; "" when it knows of none.
    """

    applied: Applied | None
    blocked: str
    newest_base_id: str


class Follower:
    """What a replica contains and what it waits for.

    Attributes:
        lineage_id: of the broker's history; "" while it has none.
        applied: what the tables contain and may go on from; None: a base is needed.
        blocked: why following has stopped; "" while it goes on.
    """

    def __init__(self, identity: Identity) -> None:
        """Know nothing yet; `begin` comes first."""
        self._identity = identity
        self.lineage_id = ""
        self.applied: Applied | None = None
        self.blocked = ""
        self._need: Need | None = None
        # In the order of the topic.
        self._bases: dict[str, BasePointer] = {}
        self._useless: dict[str, str] = {}
        # The base that this process loaded last; None while it goes on from tables that it found.
        self._origin: str | None = None

    @property
    def is_following(self) -> bool:
        """True when the next delta is wanted."""
        return self.applied is not None and not self.blocked

    @property
    def standing(self) -> Standing:
        """What to report."""
        blocked = "" if self.is_following or self.base_to_load() is not None else self.blocked or "no base that it can use was announced"
        return Standing(applied=self.applied, blocked=blocked, newest_base_id=next(reversed(self._bases), ""))

    def begin(self, lineage_id: str, applied: Applied | None) -> None:
        """Follow this history of the broker, from what the tables contain of it, or from the next base."""
        self.lineage_id = lineage_id
        self.applied = applied
        self.blocked = ""
        self._need = None
        self._origin = None
        self._bases.clear()
        self._useless.clear()

    def announce(self, pointer: BasePointer) -> str:
        """Take note of a base; return why it is refused, or ""."""
        who = f"base {pointer.base_id!r} of epoch {pointer.epoch}"
        if pointer.model != self._identity.model:
            return f"{who} is of model {pointer.model!r}, this replica serves {self._identity.model!r}"
        if pointer.schema_hash != self._identity.schema_hash:
            return f"{who} has schema {pointer.schema_hash!r}, this replica has {self._identity.schema_hash!r}"
        if pointer.lineage_id != self.lineage_id:
            return f"{who} is of lineage {pointer.lineage_id!r}, this broker's is {self.lineage_id!r}"
        if len(pointer.delta_offsets) <= self._identity.shard or pointer.delta_offsets[self._identity.shard] < 0:
            return f"{who} does not say where the deltas of shard {self._identity.shard} continue"
        if pointer.epoch < 1 or pointer.seq < NO_SEQ or not 0 < len(pointer.base_id.encode()) <= _MAX_BASE_ID_BYTES:
            return f"base {pointer.base_id[:_MAX_BASE_ID_BYTES]!r} at {pointer.epoch}.{pointer.seq} cannot be one"
        # A base announced again is the newest again.
        self._bases.pop(pointer.base_id, None)
        self._bases[pointer.base_id] = pointer
        return ""

    def base_to_load(self) -> BasePointer | None:
        """Return the base that is better than what there is, None when there is none or none is needed."""
        usable = [pointer for pointer in self._bases.values() if self._is_usable(pointer)]
        newest = max(reversed(usable), key=lambda pointer: pointer.epoch, default=None)
        if newest is None or self.applied is None or self.blocked:
            return newest
        return newest if newest.epoch > self.applied.epoch else None

    def loaded(self, pointer: BasePointer, applied: Applied) -> None:
        """Note that the tables were built from this base."""
        self.applied = applied
        self.blocked = ""
        self._need = None
        self._origin = pointer.base_id

    def lost(self) -> None:
        """Note that the tables are gone: a base is needed, and any will do, the one before included."""
        self.applied = None
        self.blocked = ""
        self._need = None
        self._origin = None

    def discard(self, base_id: str, reason: str) -> None:
        """Note that this base cannot be used, now or later."""
        self._useless[base_id] = reason

    def judge(self, header: DeltaHeader) -> Decision:
        """Return what to do with a delta.

        Raises:
            RuntimeError: nothing is applied yet, or following has stopped.
        """
        if self.applied is None or self.blocked:
            raise RuntimeError("no delta is wanted")
        foreign = self._foreign(header)
        if foreign:
            return Decision(Outcome.REFUSE, foreign)
        if header.epoch < self.applied.epoch:
            return Decision(Outcome.REFUSE, f"epoch {header.epoch} was superseded by {self.applied.epoch}")
        if header.epoch > self.applied.epoch:
            return self._judge_first(header)
        if header.seq <= self.applied.seq:
            return Decision(Outcome.SKIP, f"seq {header.seq} is applied already")
        if header.prev_seq != self.applied.seq:
            reason = f"it follows seq {header.prev_seq}, but only {self.applied.seq} is applied: a delta is missing"
            return Decision(Outcome.BLOCK, reason, Need(epoch=header.epoch, seq=header.prev_seq))
        return Decision(Outcome.APPLY)

    def advanced(self, applied: Applied) -> None:
        """Note that the tables contain this now."""
        self.applied = applied

    def block(self, reason: str, need: Need | None = None) -> None:
        """Stop following until a base other than the one that led here meets the need; by default one that contains what is applied."""
        self.blocked = reason
        if need is None and self.applied is not None:
            need = Need(epoch=self.applied.epoch, seq=self.applied.seq)
        self._need = need
        if self._origin is not None:
            self._useless[self._origin] = reason

    def _is_usable(self, pointer: BasePointer) -> bool:
        return pointer.base_id not in self._useless and (self._need is None or self._need.is_met_by(pointer))

    def _foreign(self, header: DeltaHeader) -> str:
        identity = self._identity
        for what, theirs, ours in (
            ("model", header.model, identity.model),
            ("schema", header.schema_hash, identity.schema_hash),
            ("lineage", header.lineage_id, self.lineage_id),
            ("shard", header.shard, identity.shard),
        ):
            if theirs != ours:
                return f"its {what} is {theirs!r}, this replica has {ours!r}"
        if len(header.base_id.encode()) > _MAX_BASE_ID_BYTES:
            return f"its base_id has {len(header.base_id.encode())} bytes"
        return ""

    def _judge_first(self, header: DeltaHeader) -> Decision:
        """Judge a delta of a newer epoch."""
        if header.prev_seq != NO_SEQ:
            reason = f"epoch {header.epoch} began with deltas that are missing here"
            return Decision(Outcome.BLOCK, reason, Need(epoch=header.epoch, seq=header.prev_seq))
        if not self._contains(header.base_id):
            reason = f"epoch {header.epoch} continues base {header.base_id!r}, which is not applied here"
            return Decision(Outcome.BLOCK, reason, Need(epoch=header.epoch, seq=NO_SEQ, base_id=header.base_id))
        assert self.applied is not None
        if header.continues_epoch == self.applied.epoch and header.continues_seq > self.applied.seq:
            reason = f"epoch {header.epoch} continues {header.continues_epoch}.{header.continues_seq}, only {self.applied.seq} is applied"
            return Decision(Outcome.BLOCK, f"{reason}: a delta is missing", Need(epoch=header.epoch, seq=NO_SEQ))
        if header.continues_epoch > self.applied.epoch:
            reason = f"epoch {header.epoch} continues epoch {header.continues_epoch}, of which nothing is applied here"
            return Decision(Outcome.BLOCK, reason, Need(epoch=header.epoch, seq=NO_SEQ))
        return Decision(Outcome.APPLY)

    def _contains(self, base_id: str) -> bool:
        """Return whether the tables contain a base: they were built from it, or passed it by deltas."""
        assert self.applied is not None
        if base_id == self.applied.base_id:
            return True
        pointer = self._bases.get(base_id)
        return pointer is not None and pointer.epoch == self.applied.epoch and pointer.seq <= self.applied.seq
