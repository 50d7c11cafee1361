"""The plan that the list `features` compiles to: operators in the order of their needs, run by batch, stream and request alike.

A feature is computed where its needs are known: once an event from the user and the context, once an item from the item alone, once a
pair of both from what crosses them. A request is one event with its candidates, the stream one event with one item, a batch any number
of events and items, and pairs of them. Every operator works row by row, so a row's numbers are the same bits in all three:
tests/unit/services/common/ranker/declared/test_same_bits.py.
Shapes: G events, M items, B pairs of them, U columns of the user's side, F of the item's.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from services.common.ranker.declared.encodings import (
    Float16Array,
    Keys,
    keys_of,
    number_columns,
    number_names,
    word_columns,
    word_names,
)
from services.common.ranker.declared.entries import Encoded, Entry, NumbersEntry, RawFeature, TableKeys, WordsEntry
from services.common.ranker.declared.entry_list import SequenceFeature
from services.common.ranker.declared.graph import BadFeatures, ordered, split, tables_of
from services.common.ranker.declared.inputs import WrongValue, numbers_of, words_of
from services.common.ranker.declared.operators import Cast, Operator, as_words, cast_of, operator_of
from services.common.ranker.declared.row_keys import KeyedFeature, KeyedRows, RowKeys, SequenceKeys
from services.common.ranker.declared.sequences import Past, SequencePlan
from services.common.ranker.declared.values import Column, Int64Array, Numbers, Words

Attributes = Mapping[str, Any]
"""Values by field; what is not there is absent."""
NONE: Attributes = {}


class Scope(Enum):
    """What one row of a column is about."""

    EVENT = "event"
    ITEM = "item"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One field that the plan reads, and as what."""

    side: str
    field: str
    cast: Cast
    width: int

    def column(self, rows: Sequence[Attributes]) -> Column:
        """Return the field of these rows; raises WrongValue."""
        name, values = f"{self.side}:{self.field}", [row.get(self.field) for row in rows]
        return words_of(name, values) if self.cast == "words" else numbers_of(name, values, self.width)


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    scope: Scope
    reads: tuple[str, ...]
    run: Operator


@dataclass(frozen=True, slots=True)
class _Output:
    feature: Encoded
    scope: Scope
    columns: tuple[str, ...]
    """Names; empty for a feature with a table."""


@dataclass(frozen=True, slots=True)
class Part:
    """What was computed of events, or of items; whoever keeps it computes it once for any number of pairs."""

    count: int
    columns: Mapping[str, Column]
    numbers: Float16Array
    """float16 [count, columns of the outputs of this scope]."""
    keys: Mapping[str, Keys]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the network takes of B pairs."""

    user_GU: Float16Array
    items_BF: Float16Array
    event_keys: Mapping[str, Keys]
    """By feature, of G rows."""
    pair_keys: Mapping[str, Keys]
    """By feature, of B rows."""


class Plan:
    """A compiled list of features. Holds no data."""

    def __init__(self, features: Sequence[Entry], labels: Container[str] = ()) -> None:
        """Compile.

        Args:
            features: entries in the order of the file.
            labels: names of tasks and kinds of feedback: no feature may read a field of such a name.
        Raises:
            BadFeatures: the entries do not fit together.
        """
        self.features = tuple(features)
        self.tables: Mapping[str, TableKeys] = tables_of(features)
        """What the features say about the tables that they name."""
        self._scopes: dict[str, Scope] = {}
        self._wanted: dict[str, Wanted] = {}
        self._steps: dict[str, _Step] = {}
        for feature in ordered(features, labels):
            self._add(feature)
        sequences = [one for one in features if isinstance(one, SequenceFeature)]
        self._sequences = [SequencePlan(one) for one in sequences]
        self.sequences = tuple(one.inputs for one in self._sequences)
        """The sequences, in the order of the spec."""
        self.reads_ages = any("sequence:age" in one.references() for one in sequences)
        """Whether a sequence reads how long ago events happened."""
        of_sequences = [part for one in sequences for part in one.item_parts]
        for part in of_sequences:
            if self._scopes[part.feature_name] is not Scope.ITEM:
                raise BadFeatures(
                    f"features: {part.feature_name}: {part.references()[0]!r} is not about the item alone; an event has no other"
                )
        plain = [one for one in features if isinstance(one, Encoded) and not one.stub_type]
        outputs = [_Output(one, self._scopes[one.feature_name], _names(one)) for one in plain]
        # What only sequences read comes last: of an item like others, but no input of its own.
        self._outputs = [*outputs, *(_Output(one, Scope.ITEM, ()) for one in of_sequences)]
        self.user_columns = self._columns_of(Scope.EVENT)
        """Names of the columns of Outputs.user_GU."""
        self.item_columns = tuple(name for output in self._outputs if output.scope is not Scope.EVENT for name in output.columns)
        """Names of the columns of Outputs.items_BF, in the order of the spec."""
        keyed = [(output.scope is Scope.EVENT, _keyed(output.feature)) for output in outputs if output.feature.table is not None]
        self.user_keyed = tuple(one for is_of_event, one in keyed if is_of_event)
        """The features of events that make keys, in the order of the spec."""
        self.item_keyed = tuple(one for is_of_event, one in keyed if not is_of_event)
        """The same of items and pairs."""

    @property
    def item_columns_of_pairs(self) -> tuple[str, ...]:
        """Names of the columns of an items' part that features of pairs read."""
        read = {name for step in self._steps.values() if step.scope is Scope.PAIR for name in step.reads}
        return tuple(name for name in self._scopes if name in read and self._scopes[name] is Scope.ITEM)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The fields that it reads, of user, context and item."""
        return tuple(self._wanted.values())

    @property
    def item_keys(self) -> tuple[str, ...]:
        """Names of the features whose keys depend on the item alone."""
        return tuple(one.feature.feature_name for one in self._outputs if one.scope is Scope.ITEM and one.feature.table is not None)

    @property
    def longest_sequence(self) -> int:
        """Events of a user that its sequences read; 0 without sequences."""
        return max((one.length for one in self.sequences), default=0)

    def made_by(self, name: str) -> tuple[Scope, str | None, tuple[str, ...]]:
        """Return what a feature is about, the table of its rows, and the names of its columns; a stub and a sequence make none."""
        output = next((output for output in self._outputs if output.feature.feature_name == name), None)
        if output is None:
            return self._scopes.get(name, Scope.EVENT), None, ()
        return output.scope, output.feature.table, output.columns

    def faults(self, side: str, attributes: Attributes) -> dict[str, str]:
        """Return, by field, what is wrong with attributes of a side that have another type than the features read; mostly nothing."""
        found: dict[str, str] = {}
        for one in self._wanted.values():
            if one.side == side and one.field in attributes:
                try:
                    one.column([attributes])
                except WrongValue as error:
                    found[one.field] = str(error).removeprefix(f"{side}:{one.field}: ")
        return found

    def events(self, users: Sequence[Attributes], contexts: Sequence[Attributes]) -> Part:
        """Compute what depends on no item.

        Args:
            users: profiles of the users of G events.
            contexts: of the same events.
        Raises:
            WrongValue: a value is not of the type that the features read; names the field.
        """
        return self._part(Scope.EVENT, self._inputs({"user": users, "context": contexts}), len(users))

    def items(self, items: Sequence[Attributes]) -> Part:
        """Compute what depends on the item alone, for M items. Raises WrongValue."""
        return self._part(Scope.ITEM, self._inputs({"item": items}), len(items))

    def numbers(self, events: Part, items: Part, event_B: Int64Array, item_B: Int64Array) -> Float16Array:
        """Return Outputs.items_BF alone.

        Args:
            events: of G events.
            items: of M items.
            event_B: int64 [B], of each pair which of the events.
            item_B: int64 [B], of each pair which of the items.
        """
        return self._numbers(self._pairs(events, items, event_B, item_B), items, item_B)

    def run(self, events: Part, items: Part, event_B: Int64Array, item_B: Int64Array) -> Outputs:
        """Return everything of B pairs; arguments as of `numbers`."""
        paired = self._pairs(events, items, event_B, item_B)
        pair_keys = {**{name: one.take(item_B) for name, one in items.keys.items()}, **paired.keys}
        return Outputs(events.numbers, self._numbers(paired, items, item_B), events.keys, pair_keys)

    def sequence_keys(self, past: Past, item_ids: Sequence[str], items: Part, item_B: Int64Array) -> tuple[SequenceKeys, ...]:
        """Return the keys of all sequences, of G requests and B candidates.

        Args:
            past: of the users of the G requests.
            item_ids: of the B candidates.
            items: of M items.
            item_B: int64 [B], of each candidate which of the items.
        """
        return tuple(one.keys(past, item_ids, items.keys, item_B) for one in self._sequences)

    def keyed(self, outputs: Outputs, sequences: tuple[SequenceKeys, ...] = ()) -> KeyedRows | None:
        """Return the keys of all pairs side by side, beside what `sequence_keys` returned; None when no feature makes any."""
        if not self.user_keyed and not self.item_keyed and not self.sequences:
            return None
        return KeyedRows(
            RowKeys.of([outputs.event_keys[one.name] for one in self.user_keyed], len(outputs.user_GU)),
            RowKeys.of([outputs.pair_keys[one.name] for one in self.item_keyed], len(outputs.items_BF)),
            sequences,
        )

    def _numbers(self, paired: Part, items: Part, item_B: Int64Array) -> Float16Array:
        of_items_BM = items.numbers[item_B]
        if not self._columns_of(Scope.PAIR):
            return of_items_BM
        numbers_BF = np.empty((len(item_B), len(self.item_columns)), dtype=np.float16)
        at, taken = 0, {Scope.ITEM: 0, Scope.PAIR: 0}
        for output in self._outputs:
            if output.scope is Scope.EVENT:
                continue
            width, begin = len(output.columns), taken[output.scope]
            source = of_items_BM if output.scope is Scope.ITEM else paired.numbers
            numbers_BF[:, at : at + width] = source[:, begin : begin + width]
            at, taken[output.scope] = at + width, begin + width
        return numbers_BF

    def _pairs(self, events: Part, items: Part, event_B: Int64Array, item_B: Int64Array) -> Part:
        steps = [step for step in self._steps.values() if step.scope is Scope.PAIR]
        read = {name for step in steps for name in step.reads}
        made = {name: column.take(event_B) for name, column in events.columns.items() if name in read}
        made |= {name: column.take(item_B) for name, column in items.columns.items() if name in read}
        return self._part(Scope.PAIR, made, len(event_B))

    def _part(self, scope: Scope, made: dict[str, Column], count: int) -> Part:
        for step in self._steps.values():
            if step.scope is scope:
                made[step.name] = step.run([made[name] for name in step.reads])
        numbers, keys = [], {}
        for output in self._outputs:
            if output.scope is not scope:
                continue
            if output.feature.table is None:
                numbers.append(_numbers_of(output.feature, made[output.feature.feature_name]))
            else:
                keys[output.feature.feature_name] = keys_of(output.feature, made[output.feature.feature_name])
        side_by_side = np.concatenate(numbers, axis=1) if numbers else np.empty((count, 0), dtype=np.float16)
        return Part(count, made, side_by_side, keys)

    def _inputs(self, rows_of: Mapping[str, Sequence[Attributes]]) -> dict[str, Column]:
        return {name: wanted.column(rows_of[wanted.side]) for name, wanted in self._wanted.items() if wanted.side in rows_of}

    def _columns_of(self, scope: Scope) -> tuple[str, ...]:
        return tuple(name for output in self._outputs if output.scope is scope for name in output.columns)

    def _add(self, feature: Entry) -> None:
        cast = cast_of(feature)
        reads = tuple(self._read(reference, cast, feature) for reference in feature.references())
        scopes = {self._scopes[name] for name in reads}
        scope = scopes.pop() if len(scopes) == 1 else Scope.PAIR
        self._scopes[feature.feature_name] = scope
        self._steps[feature.feature_name] = _Step(feature.feature_name, scope, reads, operator_of(feature))

    def _read(self, reference: str, cast: Cast, reader: Entry) -> str:
        """Return the name of the column that a reference stands for; makes it where it is not there yet."""
        side, field = split(reference)
        if side != "feature":
            width = reader.width if isinstance(reader, RawFeature) else 1
            name = f"{reference} as {width} {cast}"
            self._wanted[name] = Wanted(side, field, cast, width)
            self._scopes[name] = Scope.ITEM if side == "item" else Scope.EVENT
            return name
        read = next(one for one in self.features if one.feature_name == field)
        if cast == "numbers" or not isinstance(read, NumbersEntry):
            return field
        name = f"{reference} as words"
        self._scopes[name] = self._scopes[field]
        self._steps[name] = _Step(name, self._scopes[field], (field,), _words_of_number(read))
        return name


def _words_of_number(feature: NumbersEntry) -> Operator:
    def run(columns: Sequence[Column]) -> Column:
        numbers = columns[0]
        assert isinstance(numbers, Numbers)
        return as_words(feature, numbers)

    return run


def _keyed(feature: Encoded) -> KeyedFeature:
    assert feature.table is not None and feature.embedding_dim is not None
    return KeyedFeature(feature.feature_name, feature.table, feature.pooling, feature.embedding_dim)


def _names(feature: Encoded) -> tuple[str, ...]:
    if feature.table is not None:
        return ()
    if isinstance(feature, NumbersEntry):
        return number_names(feature, feature.width if isinstance(feature, RawFeature) else 1)
    assert isinstance(feature, WordsEntry)
    return word_names(feature)


def _numbers_of(feature: Encoded, column: Column) -> Float16Array:
    if isinstance(feature, NumbersEntry) and isinstance(column, Numbers):
        return number_columns(feature, column)
    assert isinstance(feature, WordsEntry) and isinstance(column, Words)
    return word_columns(feature, column)
