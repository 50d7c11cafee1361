"""The entries of the list `features` as they stand in the file: each a mapping of one key, the kind of the feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from services.common.ranker.declared.entries import (
    ComboFeature,
    Encoded,
    Entry,
    ExprFeature,
    FeatureName,
    IdFeature,
    LookupFeature,
    MatchFeature,
    OverlapFeature,
    RawFeature,
    TokenizeFeature,
)

# The history of a user has 100 items at most (feature_spec.HistorySpec).
MAX_SEQUENCE = 100
MAX_PARTS = 16


class _One(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IdOne(_One):
    """An id_feature."""

    id_feature: IdFeature


class RawOne(_One):
    """A raw_feature."""

    raw_feature: RawFeature


class ComboOne(_One):
    """A combo_feature."""

    combo_feature: ComboFeature


class LookupOne(_One):
    """A lookup_feature."""

    lookup_feature: LookupFeature


class MatchOne(_One):
    """A match_feature."""

    match_feature: MatchFeature


class OverlapOne(_One):
    """An overlap_feature."""

    overlap_feature: OverlapFeature


class ExprOne(_One):
    """An expr_feature."""

    expr_feature: ExprFeature


class TokenizeOne(_One):
    """A tokenize_feature."""

    tokenize_feature: TokenizeFeature


def _kind_of(raw: Any) -> str:
    return str(next(iter(raw if isinstance(raw, dict) else type(raw).model_fields)))


def _one_of(*kinds: str) -> Callable[[Any], Any]:
    def check(raw: Any) -> Any:
        if isinstance(raw, _One) or (isinstance(raw, dict) and len(raw) == 1 and _kind_of(raw) in kinds):
            return raw
        there = ", ".join(map(str, raw)) or "nothing" if isinstance(raw, dict) else repr(raw)
        text = f"an entry is a mapping of one key, its kind (there: {there:.100}); kinds are {', '.join(kinds)}"
        raise PydanticCustomError("feature_kind", "{text}", {"text": text})

    return check


SequencePart = Annotated[
    Annotated[IdOne, Tag("id_feature")] | Annotated[RawOne, Tag("raw_feature")],
    Discriminator(_kind_of),
    BeforeValidator(_one_of("id_feature", "raw_feature")),
]


EVENT_FIELDS: Mapping[str, str] = {
    "item_id": "words: the id of its item",
    "age": "a number: seconds since it happened",
    "value": "a number: its value on the scale 0 to 1 of its kind, 0.5 for acts without one",
}
"""What a `sequence:` reference of a part may name."""


class SequenceFeature(Entry):
    """The user's latest events, newest first, each as the rows of its parts side by side."""

    KIND = "sequence_feature"
    OTHER_KEYS = ("sequence_name",)
    feature_name: FeatureName = Field(validation_alias=AliasChoices("sequence_name", "feature_name"))
    """`sequence_name` in the file."""
    sequence_length: int = Field(default=20, ge=1, le=MAX_SEQUENCE)
    """Events kept, the newest."""
    features: tuple[SequencePart, ...] = Field(min_length=1, max_length=MAX_PARTS)
    """id_feature and raw_feature entries, with embedding_dim, that read fields of the event's item or of the event."""

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "sequence_name" in raw and "feature_name" in raw:
            raise PydanticCustomError(
                "feature_key", "{text}", {"text": "sequence_name and feature_name are two names of one key; give one"}
            )
        return raw

    @model_validator(mode="after")
    def _parts_are_rows(self) -> SequenceFeature:
        if self.stub_type:
            raise ValueError("stub_type: no other feature reads a sequence; leave it out")
        names = [part.feature_name for part in self.parts]
        for name, part in zip(names, self.parts, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"features: {name!r} is there twice")
            if part.stub_type:
                raise ValueError(f"features: {name!r}: stub_type: no other feature reads a part of a sequence; leave it out")
            if part.table is None:
                raise ValueError(
                    f"features: {name!r} has no embedding_dim: an event is the rows of its parts; a number needs boundaries too"
                )
            side, _, field = part.references()[0].partition(":")
            if side not in ("item", "sequence", "feature") or (side == "sequence" and field not in EVENT_FIELDS):
                raise ValueError(
                    f"features: {name!r}: {part.references()[0]!r} is nothing of an event: allowed are item:FIELD, feature:NAME of a "
                    f"feature of the item, {', '.join(f'sequence:{field} ({what})' for field, what in EVENT_FIELDS.items())}"
                )
            if isinstance(part, IdFeature) and side == "sequence" and field != "item_id":
                raise ValueError(f"features: {name!r}: sequence:{field} is a number; make it a raw_feature with boundaries")
            if not isinstance(part, IdFeature) and field == "item_id" and side == "sequence":
                raise ValueError(f"features: {name!r}: sequence:item_id is words; make it an id_feature")
        return self

    @property
    def parts(self) -> tuple[Encoded, ...]:
        """The features of each event; each says which table its rows are of."""
        parts = (_encoded_of(part) for part in self.features)
        return tuple(
            part if part.table is None else part.model_copy(update={"embedding_name": part.embedding_name or self.name_of(part)})
            for part in parts
        )

    @property
    def item_parts(self) -> tuple[Encoded, ...]:
        """Those parts that are computed of an item, under the names that they have outside of the sequence."""
        of_item = (part for part in self.parts if not part.references()[0].startswith("sequence:"))
        return tuple(part.model_copy(update={"feature_name": self.name_of(part)}) for part in of_item)

    def name_of(self, part: Encoded) -> str:
        """Return the name of a part outside of the sequence; its table is called so, unless it says `embedding_name`."""
        return f"{self.feature_name}__{part.feature_name}"

    def references(self) -> tuple[str, ...]:
        """Return what its parts read."""
        return tuple(reference for part in self.parts for reference in part.references())


class SequenceOne(_One):
    """A sequence_feature."""

    sequence_feature: SequenceFeature


KINDS = (
    *("id_feature", "raw_feature", "combo_feature", "lookup_feature", "match_feature"),
    *("overlap_feature", "expr_feature", "tokenize_feature", "sequence_feature"),
)

FeatureOne = Annotated[
    Annotated[IdOne, Tag("id_feature")]
    | Annotated[RawOne, Tag("raw_feature")]
    | Annotated[ComboOne, Tag("combo_feature")]
    | Annotated[LookupOne, Tag("lookup_feature")]
    | Annotated[MatchOne, Tag("match_feature")]
    | Annotated[OverlapOne, Tag("overlap_feature")]
    | Annotated[ExprOne, Tag("expr_feature")]
    | Annotated[TokenizeOne, Tag("tokenize_feature")]
    | Annotated[SequenceOne, Tag("sequence_feature")],
    Discriminator(_kind_of),
    BeforeValidator(_one_of(*KINDS)),
]


def feature_of(one: BaseModel) -> Entry:
    """Return the feature of an entry of the list."""
    feature = getattr(one, _kind_of(one))
    assert isinstance(feature, Entry)
    return feature


def _encoded_of(part: BaseModel) -> Encoded:
    feature = feature_of(part)
    assert isinstance(feature, Encoded)
    return feature
