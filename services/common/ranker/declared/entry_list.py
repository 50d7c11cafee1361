"""The entries of the list `features` as they stand in the file: each a mapping of one key, the kind of the feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from services.common.ranker.declared.entries import (
    ComboFeature,
    Entry,
    ExprFeature,
    IdFeature,
    LookupFeature,
    MatchFeature,
    OverlapFeature,
    RawFeature,
    TokenizeFeature,
)

MAX_SEQUENCE = 200


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


class SequenceFeature(Entry):
    """The user's latest events, newest first, with features of each."""

    KIND = "sequence_feature"
    sequence_length: int = Field(default=20, ge=1, le=MAX_SEQUENCE)
    """Events kept, the newest."""
    features: tuple[SequencePart, ...] = Field(min_length=1, max_length=32)
    """id_feature and raw_feature entries that read `sequence:` fields."""

    @property
    def parts(self) -> tuple[Entry, ...]:
        """The features of each event."""
        return tuple(feature_of(part) for part in self.features)

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
