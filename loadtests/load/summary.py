"""Numbers of a run: per kind of call its counts, latency percentiles and longest time without a success. Pure; numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.load.calls import NOT_SENT, NOTHING_TO_REPORT, Call

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
# A call sent later than this after it was due counts as a late start: the client, not the mesh, was too slow.
LATE_MS = 50.0
_MAX_REASONS = 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """The calls that were due within one piece of the run; latencies in milliseconds, of those that succeeded (None: none did)."""

    at_s: float
    planned: int
    failed: int
    degraded: int
    percentiles_ms: tuple[float, float, float] | None


def summarise(calls: Sequence[Call]) -> dict[str, Any]:
    """Return by kind what `summarise_kind` says of its calls."""
    kinds = sorted({call.kind for call in calls})
    return {kind: summarise_kind([call for call in calls if call.kind == kind]) for kind in kinds}


def summarise_kind(calls: Sequence[Call]) -> dict[str, Any]:
    """Return counts, ratios, percentiles in milliseconds and the longest gap in seconds. `calls` are of one kind, not empty.

    `latency_ms` counts from when a call was due, retries included; `service_ms` from when it was sent. Percentiles are of successes.
    """
    counted = [call for call in calls if call.counts]
    good = [call for call in counted if call.ok]
    late = np.array([call.late_ms for call in counted])
    result: dict[str, Any] = {
        "planned": len(counted),
        "succeeded": len(good),
        "failed": len(counted) - len(good),
        "not_sent": sum(call.status == NOT_SENT for call in counted),
        "nothing_to_report": sum(call.status == NOTHING_TO_REPORT for call in calls),
        "success_ratio": len(good) / len(counted) if counted else None,
        "retried": sum(call.attempts > 1 for call in counted),
        "late_starts": int((late > LATE_MS).sum()),
        "latest_start_ms": round(float(late.max()), 1) if len(late) else 0.0,
        "latency_ms": percentiles_of([call.latency_ms for call in good]),
        "service_ms": percentiles_of([call.service_ms for call in good]),
        "longest_gap_s": round(longest_gap_s(counted), 3),
        "failures": dict(_reasons(counted).most_common(_MAX_REASONS)),
        "degraded": dict(Counter(call.degraded for call in good if call.degraded)),
    }
    if any(call.first_text_s is not None for call in counted):
        result |= _of_streams(counted, good)
    return result


def _reasons(calls: Sequence[Call]) -> Counter[str]:
    return Counter(f"{call.status}: {call.detail}" if call.detail else call.status for call in calls if not call.ok)


def _of_streams(counted: Sequence[Call], good: Sequence[Call]) -> dict[str, Any]:
    first = [(call.first_text_s - call.planned_s) * 1e3 for call in good if call.first_text_s is not None]
    busy_s = sum(call.ended_s - call.first_text_s for call in good if call.first_text_s is not None)
    tokens = sum(call.tokens for call in good)
    return {
        "first_text_ms": percentiles_of(first),
        "tokens": tokens,
        "tokens_per_s_of_a_stream": round(tokens / busy_s, 2) if busy_s else None,
        "cut": sum(not call.ok and call.first_text_s is not None for call in counted),
    }


def percentiles_of(values: Sequence[float]) -> dict[str, float] | None:
    """Return "p50" … "p99.9" and "max", rounded to 0.01; None without values."""
    if not values:
        return None
    array: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    found = {
        f"p{percentile:g}": round(float(value), 2) for percentile, value in zip(PERCENTILES, np.percentile(array, PERCENTILES), strict=True)
    }
    return found | {"max": round(float(array.max()), 2)}


def longest_gap_s(calls: Sequence[Call], *, since_s: float | None = None, until_s: float | None = None) -> float:
    """Return the longest time in seconds in which no call succeeded, within a part of the run (default: the whole).

    The part begins with the first call that was due and ends with the last end, unless it is given. Of an even load of r a second, 1/r is
    the least that can be expected.
    """
    if not calls:
        return 0.0
    begin = min(call.planned_s for call in calls) if since_s is None else since_s
    end = max(call.ended_s for call in calls) if until_s is None else until_s
    successes = sorted(call.ended_s for call in calls if call.ok and begin <= call.ended_s <= end)
    times = np.array([begin, *successes, end])
    return float(np.diff(times).max())


def timeline(calls: Sequence[Call], *, bucket_s: float) -> list[Bucket]:
    """Return the run in buckets of `bucket_s` by when calls were due; buckets without a call are left out."""
    if not calls:
        return []
    begin = min(call.planned_s for call in calls)
    by_bucket: dict[int, list[Call]] = {}
    for call in calls:
        if call.counts:
            by_bucket.setdefault(int((call.planned_s - begin) // bucket_s), []).append(call)
    return [_bucket(number * bucket_s, some) for number, some in sorted(by_bucket.items())]


def _bucket(at_s: float, calls: Sequence[Call]) -> Bucket:
    good = [call.latency_ms for call in calls if call.ok]
    found = tuple(float(value) for value in np.percentile(good, (50, 95, 99))) if good else None
    return Bucket(
        at_s=at_s,
        planned=len(calls),
        failed=sum(not call.ok for call in calls),
        degraded=sum(bool(call.degraded) for call in calls if call.ok),
        percentiles_ms=(found[0], found[1], found[2]) if found else None,
    )
