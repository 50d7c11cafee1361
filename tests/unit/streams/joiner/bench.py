"""One partition of the joiner with its two logs in memory, for tests of the join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.platform.ids import sample_id
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import keep_negative
from streams.joiner.core import JoinerPartition
from streams.joiner.model import Cut, Emission, JoinConfig, Resume, SampleGroup
from streams.partitioned.records import Record
from tests.unit.streams.partitioned.test_intake import an_intake

T0 = 1_700_000_000_000
WINDOW, HORIZON = 10_000, 50_000
SPEC = FeatureSpec.parse(
    {
        "format": 1,
        "model": "ranker",
        "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
        "kinds": {"rating": {"value_range": [1, 5]}, "click": {}},
        "tasks": [
            {"name": "interact", "labels": {"rating": 1, "click": 1}, "unanswered": 0},
            {"name": "like", "labels": {"rating": {"at_least": 4}}},
        ],
        "negatives": {"keep_rate": 0.5},
        "blend": {"interact": 1.0},
    }
)
# Negatives come of what was seen.
SEEN_SPEC = SPEC.model_copy(update={"negatives": SPEC.negatives.model_copy(update={"source": "impressions"})})
CONFIG = JoinConfig(window_ms=WINDOW, late_horizon_ms=HORIZON, tick_gap_ms=500)
ITEMS = tuple(f"i{number}" for number in range(12))


class Outcome(NamedTuple):
    """What a tick brought about."""

    emissions: Sequence[Emission]
    cut: Cut


class Bench:
    """One partition with its two logs; `expose` and `answer` append a record and read it at once."""

    def __init__(
        self,
        *,
        starts: tuple[int, int] = (0, 0),
        resume: Resume | None = None,
        max_pending_bytes: int = 1 << 30,
        spec: FeatureSpec = SPEC,
    ) -> None:
        self.intake = an_intake(starts, max_pending_bytes=max_pending_bytes)
        self.counts = self.intake.counts
        self.joiner = JoinerPartition(spec, CONFIG, self.intake, resume)
        self.exposures, self.feedback = starts

    def expose(self, request_id: str = "r1", *, at: int = 0, **changes) -> Sequence[Emission]:
        fields = {
            "request_id": request_id, "user_id": "u1", "exposed_at_ms": T0 + at, "item_ids": ITEMS, "features_block": b"block",
            "schema_hash": SPEC.schema_hash,
        }  # fmt: skip
        record = Record("exposures.v1", 0, self.exposures, b"u1", b"raw exposure", ())
        self.exposures += 1
        return self.joiner.on_exposure(Exposure(**(fields | changes)), record)

    def answer(self, item_id: str = "i0", *, at: int = 1_000, request_id: str = "r1", **changes) -> Sequence[Emission]:
        fields = {
            "feedback_id": f"f{self.feedback}", "request_id": request_id, "user_id": "u1", "item_id": item_id, "kind": "rating",
            "value": 5.0, "accepted_at_ms": T0 + at, "traceparent": "trace of the feedback",
        }  # fmt: skip
        record = Record("feedback.v1", 0, self.feedback, b"u1", b"raw feedback", ())
        self.feedback += 1
        return self.joiner.on_feedback(Feedback(**(fields | changes)), record)

    def see(self, item_id: str, *, at: int = 500, **changes) -> Sequence[Emission]:
        return self.answer(item_id, at=at, **({"kind": "impression", "value": 1.0} | changes))

    def tick(self, *, at: int, read_to_end: bool = True) -> Outcome:
        beyond = 0 if read_to_end else 1
        return Outcome(*self.joiner.on_tick(T0 + at, (self.exposures + beyond, self.feedback + beyond)))


def kept(request_id: str = "r1") -> list[str]:
    return [item_id for item_id in ITEMS if keep_negative(sample_id(request_id, item_id, 0), 0.5)]


def items_of(group: Emission) -> list[str]:
    assert isinstance(group, SampleGroup)
    return [group.exposure.item_ids[sample.row] for sample in group.samples]


def only(emissions: Sequence[Emission]) -> Emission:
    assert len(emissions) == 1, emissions
    return emissions[0]
