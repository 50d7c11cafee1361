"""What the entries of the list `features` must agree on: names, references, what is read as what, tables; the order in which they run."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from services.common.ranker.declared.entries import (
    Encoded,
    Entry,
    ExprFeature,
    LookupFeature,
    NumbersEntry,
    RawFeature,
    TableKeys,
    WordsEntry,
)
from services.common.ranker.declared.entry_list import SequenceFeature

# Columns of an events file that say what happened, and when; no feature of what was shown.
LABEL_FIELDS = frozenset({"kind", "value", "label", "labels"})


class BadFeatures(ValueError):
    """Entries do not fit together; names the entry and the key."""


def ordered(features: Sequence[Entry], labels: Container[str]) -> list[Entry]:
    """Return the entries, each behind those that it reads; in place of a sequence those of its parts that are computed of an item.

    Args:
        features: in the order of the file.
        labels: names of tasks and of feedback kinds, which no feature may read.
    Raises:
        BadFeatures: two have one name, a reference is unknown or of a wrong kind, a feature reads a label, or they go round in a circle.
    """
    by_name: dict[str, Entry] = {}
    places = dict[str, str]()
    for at, feature in enumerate(features):
        called = "sequence_name" if isinstance(feature, SequenceFeature) else "feature_name"
        if feature.feature_name in by_name:
            raise BadFeatures(f"features.{at}.{feature.KIND}.{called}: {feature.feature_name!r} is there twice")
        by_name[feature.feature_name] = feature
        places[feature.feature_name] = f"features.{at}.{feature.KIND} ({feature.feature_name})"
    for feature in features:
        for part in feature.item_parts if isinstance(feature, SequenceFeature) else ():
            if part.feature_name in by_name:
                raise BadFeatures(f"{places[feature.feature_name]}: a part is called {part.feature_name!r}, and so is another feature")
            by_name[part.feature_name] = part
            places[part.feature_name] = places[feature.feature_name]
    computed = {name: one for name, one in by_name.items() if not isinstance(one, SequenceFeature)}
    for name, feature in computed.items():
        _check_references(places[name], feature, by_name, labels)
    needs = {name: _needed(feature) for name, feature in computed.items()}
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise BadFeatures(f"features: they read each other in a circle: {' reads '.join(reversed(error.args[1]))}") from error
    return [by_name[name] for name in order]


def tables_of(features: Sequence[Entry]) -> Mapping[str, TableKeys]:
    """Return the embedding tables that entries name, and what they say about each.

    Raises:
        BadFeatures: two features say different things about the table that they share; names both.
    """
    said: dict[str, tuple[Encoded, TableKeys]] = {}
    for feature in features:
        for one in feature.parts if isinstance(feature, SequenceFeature) else (feature,):
            if not isinstance(one, Encoded) or one.table is None or one.stub_type:
                continue
            first, keys = said.setdefault(one.table, (one, one.table_keys))
            for key, of_first, of_this in zip(TableKeys._fields, keys, one.table_keys, strict=True):
                if of_first != of_this:
                    raise BadFeatures(
                        f"features: {one.feature_name} says {key} {of_this} and {first.feature_name} {of_first}, "
                        f"but both share the table {one.table!r}; say the same in both"
                    )
    return {table: keys for table, (_, keys) in said.items()}


def _needed(feature: Entry) -> list[str]:
    return [field for side, field in map(split, feature.references()) if side == "feature"]


def split(reference: str) -> tuple[str, str]:
    """Return the side and the field of a reference."""
    side, _, field = reference.partition(":")
    return side, field


def _check_references(where: str, feature: Entry, by_name: Mapping[str, Entry], labels: Container[str]) -> None:
    for reference in feature.references():
        side, field = split(reference)
        if side == "sequence":
            raise BadFeatures(f"{where}: {reference!r}: only parts of a sequence_feature read these")
        if side in ("user", "item", "context") and (field in LABEL_FIELDS or field in labels):
            raise BadFeatures(
                f"{where}: {reference!r} is a label: what people did is not known when items are ranked; "
                "give another name to what was known before it"
            )
        if side == "feature":
            _check_feature(where, feature, reference, by_name.get(field), by_name)


def _check_feature(where: str, reader: Entry, reference: str, read: Entry | None, by_name: Mapping[str, Entry]) -> None:
    if read is None:
        raise BadFeatures(f"{where}: {reference!r}: there is no such feature; there are {', '.join(by_name)}")
    if isinstance(read, SequenceFeature):
        raise BadFeatures(f"{where}: {reference!r}: a sequence cannot be read by another feature")
    wants_number = isinstance(reader, (RawFeature, ExprFeature))
    width = reader.width if isinstance(reader, RawFeature) else 1
    if wants_number and isinstance(read, WordsEntry):
        raise BadFeatures(f"{where}: {reference!r} is words ({read.KIND}), and {reader.KIND} reads numbers")
    there = read.width if isinstance(read, RawFeature) else 1
    if wants_number and there != width:
        raise BadFeatures(f"{where}: {reference!r} has {there} numbers, here {width} are wanted")
    if not wants_number and there > 1:
        raise BadFeatures(f"{where}: {reference!r} is a vector, and {reader.KIND} reads words")
    if isinstance(read, NumbersEntry) and isinstance(reader, LookupFeature) and reference == reader.map:
        raise BadFeatures(f"{where}: map: {reference!r} is a number, no map")
