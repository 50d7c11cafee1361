"""exposures.v1: from its records to `Exposure`. The router, which alone writes them, does so from what it answered."""

from __future__ import annotations

import sys

from tunemesh.events.v1 import exposure_pb2

from services.common.events import exposure as rules
from services.common.events.attributes import NO_ATTRIBUTES
from services.common.events.envelope import Headers, MalformedRecord, parse_value
from services.common.events.exposure import Exposure
from services.common.events.limits import check_time
from services.common.events.wire.attributes import attributes_of_values
from services.common.platform.traceparent import traceparent_of


def read_exposure(value: bytes | None, headers: Headers | None, now_ms: int, *, with_scores: bool = True) -> Exposure:
    """Return the exposure in a record.

    Args:
        value: of the record.
        headers: of the record.
        now_ms: wall clock, Unix milliseconds.
        with_scores: take scores and reasons in; a reader that keeps exposures in memory leaves them out.
    Raises:
        MalformedRecord: it does not parse, or breaks the contract; the message names the field.
    """
    exposure = parse_exposure(value, headers, with_scores=with_scores)
    rules.check(exposure, MalformedRecord)
    check_time("exposed_at_ms", exposure.exposed_at_ms, now_ms, MalformedRecord)
    return exposure


def parse_exposure(value: bytes | None, headers: Headers | None, *, with_scores: bool = True, with_request: bool = False) -> Exposure:
    """Return the exposure in a record, whatever its fields say; for a reader that shows it as it is.

    Args:
        value: of the record.
        headers: of the record.
        with_scores: as in `read_exposure`.
        with_request: take in what the request brought: up to 128 KiB that joining and counting do not need.
    Raises:
        MalformedRecord: it does not parse, or what the request brought is no attributes.
    """
    message = parse_value(value, headers, exposure_pb2.Exposure)
    return exposure_of(message, traceparent_of(headers), with_scores=with_scores, with_request=with_request)


def exposure_of(message: exposure_pb2.Exposure, traceparent: str = "", *, with_scores: bool = True, with_request: bool = False) -> Exposure:
    """Return a message as an exposure. Arguments and errors: those of `parse_exposure`."""
    return Exposure(
        request_id=message.request_id,
        user_id=message.user_id,
        exposed_at_ms=message.exposed_at_ms,
        # Item ids recur in every exposure: sharing the strings halves the memory of those that wait.
        item_ids=tuple(map(sys.intern, message.item_ids)),
        features_block=message.features_block,
        schema_hash=message.schema_hash,
        propensities=tuple(message.propensities),
        experiment=message.experiment,
        variant=message.variant,
        model_version=message.model_version,
        degraded_reason=message.degraded_reason,
        idempotency_key=message.idempotency_key,
        candidates_given=message.candidates_given,
        scores=tuple(message.scores) if with_scores else (),
        reasons=tuple(message.reasons) if with_scores else (),
        context=attributes_of_values("context", message.context, MalformedRecord) if with_request else NO_ATTRIBUTES,
        profile=attributes_of_values("profile", message.profile, MalformedRecord) if with_request else NO_ATTRIBUTES,
        traceparent=traceparent,
    )
