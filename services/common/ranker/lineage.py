"""Where each feature of a spec comes from, and which features a source feeds. Pure: no artifact is read here, no mesh is asked.

A feature is a declared one (an entry of `features`, with the columns or rows that it makes) or a built-in column of a counter. A source is
a field of a topic, and the column of a file that is read in its place in `make train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from services.common.events.topics import CATALOG, EXPOSURES, FEEDBACK, PROFILES
from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker import columns
from services.common.ranker.declared.entries import Entry
from services.common.ranker.declared.entry_list import FeatureOne, SequenceFeature, feature_of
from services.common.ranker.declared.graph import split
from services.common.ranker.declared.plan import Plan, Scope
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.spec_description import Description

_ONE: TypeAdapter[Any] = TypeAdapter(FeatureOne)

COUNTER = "counter"
"""The kind of a built-in column."""


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One field that is read."""

    reference: str
    """As in the spec: `user:city`; of counters `feedback:kind`, `feedback:value`, `item:categories`."""
    topic: str
    """Where it is in service; a context comes with the request and is kept in exposures.v1."""
    file: str
    """Where `make train` reads it."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """One feature, what it makes and what it is made from."""

    name: str
    kind: str
    """`id_feature` and so on, or COUNTER."""
    makes: tuple[str, ...]
    """`user.COLUMN` and `item.COLUMN`, as the networks see them; `table TABLE` for rows of an embedding table; empty for a stub."""
    reads: tuple[str, ...]
    """Features that it reads directly."""
    sources: tuple[Source, ...]
    """All fields that it depends on, through other features too."""


_FILES = {
    "user": "column of --users or of the events",
    "item": "column of --items or of the events",
    "context": "column of the events",
    "sequence": "the user's earlier events",
    "feedback": "column of the events",
}
_TOPICS = {
    "user": PROFILES.name,
    "item": CATALOG.name,
    "context": EXPOSURES.name,
    "sequence": FEEDBACK.name,
    "feedback": FEEDBACK.name,
}


def source_of(reference: str) -> Source:
    """Return the source that `side:field` stands for."""
    side, _ = split(reference)
    return Source(reference, _TOPICS[side], _FILES[side])


def lineages(spec: FeatureSpec) -> tuple[Lineage, ...]:
    """Return all features of a spec: the counters' columns, then the declared ones in the order of the file."""
    return _lineages([feature_of(one) for one in spec.features], spec.counters.half_lives_events)


def lineages_of_artifact(description: Description) -> tuple[Lineage, ...]:
    """Return all features of the spec that an artifact was made under.

    Raises:
        CorruptArtifact: it names features that this program does not know.
    """
    try:
        entries = [feature_of(_ONE.validate_python(raw)) for raw in description.parts.get("features", [])]
        return _lineages(entries, description.half_lives_events)
    except ValueError as error:
        raise CorruptArtifact(f"its features cannot be understood: {' '.join(str(error).split()):.200}") from error


def find(found: Sequence[Lineage], name: str) -> tuple[Lineage, ...]:
    """Return those features that `name` is about.

    Args:
        found: of `lineages`.
        name: a feature; a column, with or without its side (`item.trend_500`, `trend_500`); or a source (`user:city`, or a topic), for all
            features that depend on it.
    Raises:
        InvalidInput: it is none of these; names what there is.
    """
    exact = [one for one in found if name == one.name or name in one.makes]
    by_column = exact or [one for one in found if any(name == made.partition(".")[2] for made in one.makes)]
    chosen = by_column or [one for one in found if any(name in (source.reference, source.topic) for source in one.sources)]
    if not chosen:
        known = sorted({one.name for one in found} | {source.reference for one in found for source in one.sources})
        raise InvalidInput(f"{name!r:.100} is no feature, column or source; there are {', '.join(known)}")
    return tuple(chosen)


def sources_of(found: Iterable[Lineage]) -> tuple[Source, ...]:
    """Return all sources of these features, each once, in order."""
    return tuple(sorted({source for one in found for source in one.sources}))


def _lineages(entries: Sequence[Entry], half_lives_events: Sequence[float]) -> tuple[Lineage, ...]:
    return (*_counters(half_lives_events), *_declared(entries, Plan(entries)))


def _counters(half_lives_events: Sequence[float]) -> list[Lineage]:
    made = [("user", column.name, column.reads) for column in columns.USER_COLUMNS]
    made += [("item", name, column.reads) for column in columns.ITEM_COLUMNS for name in column.names(half_lives_events)]
    return [Lineage(f"{side}.{name}", COUNTER, (f"{side}.{name}",), (), tuple(sorted(map(source_of, reads)))) for side, name, reads in made]


def _declared(entries: Sequence[Entry], plan: Plan) -> list[Lineage]:
    by_name = {entry.feature_name: entry for entry in entries}

    def depends_on(entry: Entry) -> set[str]:
        found: set[str] = set()
        for reference in entry.references():
            side, field = split(reference)
            found |= depends_on(by_name[field]) if side == "feature" else {reference}
        return found

    return [
        Lineage(
            name=entry.feature_name,
            kind=entry.KIND,
            makes=_made_by(entry, plan),
            reads=tuple(field for side, field in map(split, entry.references()) if side == "feature"),
            sources=tuple(sorted(map(source_of, depends_on(entry)))),
        )
        for entry in entries
    ]


def _made_by(entry: Entry, plan: Plan) -> tuple[str, ...]:
    if isinstance(entry, SequenceFeature):
        return tuple(dict.fromkeys(f"table {part.table}" for part in entry.parts))
    scope, table, names = plan.made_by(entry.feature_name)
    if table is not None:
        return (f"table {table}",)
    return tuple(f"{'user' if scope is Scope.EVENT else 'item'}.{name}" for name in names)
