"""Exposures: which items were shown to whom for one request. Pure, so cores may use it; `wire.exposure` reads them.

What is inside `features_block` is the ranker's business (`services.common.ranker.exposure_block`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.events.attributes import Attributes
from services.common.events.limits import ErrorOf, check_id, check_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What was shown for one request.

    Attributes:
        request_id: of the response.
        user_id: to whom.
        exposed_at_ms: Unix milliseconds, wall clock of the router.
        item_ids: in the order shown.
        features_block: one row per item; empty when the features were unavailable.
        schema_hash: of the feature spec that made the block.
        propensities: with which probability each item was put where it was; empty: all 1.
        experiment, variant, model_version: who ranked.
        degraded_reason: what was missing; empty when nothing was.
        idempotency_key: of several exposures of one user with the same key, the latest counts; empty: none has it.
        candidates_given: the client named the items.
        scores: of each item; empty when the ranker did not answer, or the reader does not want them.
        reasons: of each item, joined by commas: by which channel it came; empty as `scores` are.
        context, profile: what the request brought; empty when it brought none, or the reader does not want it.
        traceparent: W3C trace context of its record; empty when there is none.
    """

    request_id: str
    user_id: str
    exposed_at_ms: int
    item_ids: tuple[str, ...]
    features_block: bytes
    schema_hash: str
    propensities: tuple[float, ...] = ()
    experiment: str = ""
    variant: str = ""
    model_version: str = ""
    degraded_reason: str = ""
    idempotency_key: str = ""
    candidates_given: bool = False
    scores: Sequence[float] = ()
    reasons: Sequence[str] = ()
    context: Attributes = field(default_factory=dict)
    profile: Attributes = field(default_factory=dict)
    traceparent: str = ""


def check(exposure: Exposure, error: ErrorOf) -> None:
    """Raise `error`, naming the field, unless the ids are ids and the propensities stand for the items."""
    check_id("request_id", exposure.request_id, error)
    check_id("user_id", exposure.user_id, error)
    if not exposure.item_ids:
        raise error("item_ids: there are none")
    check_ids("item_ids", exposure.item_ids, error)
    if exposure.propensities and len(exposure.propensities) != len(exposure.item_ids):
        raise error(f"propensities: there are {len(exposure.propensities)} for {len(exposure.item_ids)} items")
