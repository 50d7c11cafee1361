"""Reads what a trace shows: which service called which, and which batch carried on what another one began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Span = dict[str, Any]
Ids = dict[tuple[str, str], Span]


def by_id(spans: Sequence[Span]) -> Ids:
    """Return the spans by trace and span id."""
    return {(span["trace_id"], span["span_id"]): span for span in spans}


def edges(spans: Sequence[Span]) -> set[tuple[str | None, str]]:
    """Return the pairs of a service and one that it called; who was called by nobody has None."""
    known = by_id(spans)
    return {(caller(known, span), span["service"]) for span in spans}


def caller(known: Ids, child: Span) -> str | None:
    """Return the service of the nearest ancestor in another service, None when there is none."""
    span: Span | None = child
    while span is not None and span["service"] == child["service"]:
        span = known.get((span["trace_id"], span["parent_id"]))
    return span["service"] if span is not None else None


def linked_to(spans: Sequence[Span], targets: Sequence[Span], *, name: str) -> list[Span]:
    """Return the spans of that name with a link to, or as a child of, one of the targets."""
    ids = {(span["trace_id"], span["span_id"]) for span in targets}
    return [
        span
        for span in spans
        if span["name"] == name
        and ((span["trace_id"], span["parent_id"]) in ids or any((link["trace_id"], link["span_id"]) in ids for link in span["links"]))
    ]
