"""When a base is published: at intervals, and when a replica asks for one. Pure: it is told what replicas report and what time it is.

A replica that cannot go on by deltas (a gap, a damaged delta, a log that begins later) says so in replicas.v1 until a base helped it. It
names the newest base that it knows of, so an answer on its way is waited for and no clocks are compared. A replica that bases do not help
is answered ever less often, so that one broken host does not make the trainer write bases all day.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunemesh.events.v1.delta_pb2 import ReplicaStatus

# More hosts than ask at once; the one that asked first is forgotten, and asks again.
_MAX_ASKING = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePace:
    """How often bases are published.

    Attributes:
        interval_s: by schedule, when something was learned since the last one.
        first_gap_s: between a base and the next one that is asked for ...
        last_gap_s: ... doubled up to this for a replica that the bases before did not help.
        grace_s: so long an announced base may take to be seen by a replica that names an older one.
        fresh_s: what a replica said so long ago counts no more; it says it again if it still holds.
    """

    interval_s: float
    first_gap_s: float = 5.0
    last_gap_s: float = 600.0
    grace_s: float = 10.0
    fresh_s: float = 10.0


@dataclass(slots=True, kw_only=True)
class _Asking:
    newest_base_id: str
    reason: str
    heard_s: float
    num_in_vain: int = 0


class BaseSchedule:
    """Decides when a base is due. Times are seconds of any clock that does not go back."""

    def __init__(self, pace: BasePace, *, model: str, schema_hash: str) -> None:
        """Nothing is due before `begin`.

        Args:
            pace: how often.
            model: whose replicas are heard.
            schema_hash: of the bases: a replica of another feature spec has no use for them.
        """
        self._pace = pace
        self._model, self._schema_hash = model, schema_hash
        self._asking: dict[str, _Asking] = {}
        self._base_id = ""
        self._last_s = 0.0
        self._steps_in_base = 0

    def begin(self, base_id: str, now_s: float, *, age_s: float, steps: int) -> None:
        """Go on in an epoch whose newest base is so old.

        Args:
            base_id: of the newest base.
            now_s: the present.
            age_s: of that base; a trainer that restarts often must not put the next one off each time.
            steps: what the learner had learned when it was made, or -1 when that is not known.
        """
        self._base_id, self._steps_in_base = base_id, steps
        self._last_s = now_s - min(max(age_s, 0.0), self._pace.interval_s)

    def hear(self, report: ReplicaStatus, now_s: float) -> None:
        """Take note of what a replica reports."""
        if (report.model, report.schema_hash) != (self._model, self._schema_hash):
            return
        before = self._asking.pop(report.replica_id, None)
        if report.blocked:
            in_vain = before.num_in_vain if before is not None else 0
            asking = _Asking(newest_base_id=report.newest_base_id, reason=report.blocked, heard_s=now_s, num_in_vain=in_vain)
            self._asking[report.replica_id] = asking
            if len(self._asking) > _MAX_ASKING:
                del self._asking[next(iter(self._asking))]

    def due(self, now_s: float, *, steps: int) -> str:
        """Return why a base is to be published now; empty when none is.

        Args:
            now_s: the present.
            steps: what the learner has learned.
        """
        since_s = now_s - self._last_s
        for replica_id, asking in self._asking.items():
            is_fresh = now_s - asking.heard_s <= self._pace.fresh_s
            knows_newest = asking.newest_base_id == self._base_id or since_s > self._pace.grace_s
            if is_fresh and knows_newest and since_s >= self._gap_s(asking):
                return f"replica {replica_id} asks for one: {asking.reason}"
        if since_s >= self._pace.interval_s and steps != self._steps_in_base:
            return f"the last one is {since_s:.0f} s old"
        return ""

    def published(self, base_id: str, now_s: float, *, steps: int) -> None:
        """Take note of a base that was announced, holding so many steps."""
        self._base_id, self._last_s, self._steps_in_base = base_id, now_s, steps
        for asking in self._asking.values():
            asking.num_in_vain += 1

    def _gap_s(self, asking: _Asking) -> float:
        # The exponent is bounded before the power: a replica may ask for weeks.
        return min(self._pace.first_gap_s * 2.0 ** min(max(asking.num_in_vain - 1, 0), 40), self._pace.last_gap_s)
