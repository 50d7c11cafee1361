"""The list `features` of a spec of format 2: one entry is one feature. Which keys a kind has, what they mean and what each may hold.

An entry is a mapping of one key, its kind: `- id_feature: {feature_name: city, expression: "user:city", vocab_list: [Rome, Oslo]}`. Names
of kinds and keys are EasyRec's and TorchEasyRec's where they have one. How the list is read, and what its entries must agree on:
services.common.ranker.declared.entry_list and graph.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from services.common.ranker.declared.expressions import BadExpression, compile_expression
from services.common.ranker.declared.inputs import WrongValue, word_of
from services.common.ranker.declared.lookups import ALL, Combiner
from services.common.ranker.declared.normalizers import BadNormalizer, compile_normalizer
from services.common.ranker.declared.tokenizers import Tokenizer

# A feature without embedding_dim is a column for each of its values: so many at most.
MAX_ONE_HOT = 64
MAX_VALUE_DIM = 128
MAX_WORD_CHARACTERS = 100
# Of an attribute, as in services.common.events.attributes.
MAX_NAME_BYTES = 128

FeatureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_SIDES = ("user", "item", "context", "sequence", "feature")


def _check_reference(text: str) -> str:
    side, _, field = text.partition(":")
    if (
        side not in _SIDES
        or not 0 < len(field.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        or field != field.strip()
        or not field.isprintable()
    ):
        what = f"{text!r:.100} is no side:field; sides are {', '.join(_SIDES)}; a field is 1 to {MAX_NAME_BYTES} printable bytes"
        raise PydanticCustomError("reference", "{text}", {"text": what})
    return text


Reference = Annotated[str, AfterValidator(_check_reference)]
ReferenceOrAll = Annotated[str, AfterValidator(lambda text: text if text == ALL else _check_reference(text))]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _word(value: Any) -> str:
    try:
        word = word_of("a word", value)
    except WrongValue as error:
        raise PydanticCustomError("word", "{text}", {"text": str(error)}) from error
    if not 0 < len(word) <= MAX_WORD_CHARACTERS or not word.isprintable():
        text = f"{word!r:.100} is no word: 1 to {MAX_WORD_CHARACTERS} printable characters"
        raise PydanticCustomError("word", "{text}", {"text": text})
    return word


Word = Annotated[str, BeforeValidator(_word)]
"""As values of attributes are read: 5, 5.0 and "5.0" are the word "5"."""


def _check_normalizer(text: str) -> str:
    try:
        compile_normalizer(text)
    except BadNormalizer as error:
        raise PydanticCustomError("normalizer", "{what}", {"what": str(error)}) from error
    return text


class Entry(BaseModel):
    """What every kind has."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    KIND: ClassVar[str]
    OTHER_KEYS: ClassVar[tuple[str, ...]] = ()
    """Other names of keys, as they stand in the file."""

    feature_name: FeatureName
    """Of the feature and its columns; what `feature:` references call it."""
    stub_type: bool = False
    """It only serves other features, by `feature:` references: no column, no row of a table."""

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys(cls, raw: Any) -> Any:
        known = (*cls.OTHER_KEYS, *cls.model_fields)
        unknown = sorted(str(key) for key in raw if key not in known) if isinstance(raw, dict) else []
        if unknown:
            text = f"unknown key {unknown[0]!r:.100}; {cls.KIND} has {', '.join(known)}"
            raise PydanticCustomError("feature_key", "{text}", {"text": text})
        return raw

    def references(self) -> tuple[str, ...]:
        """Return what it reads, as `side:field`."""
        raise NotImplementedError


class TableKeys(NamedTuple):
    """What entries say about the table that they share; None: nothing said."""

    embedding_dim: int
    filter_freq: int | None
    max_element_size: int | None
    steps_to_live: int | None
    l2_weight_threshold: float | None
    max_rows: int | None


class Encoded(Entry):
    """A feature whose values may be rows of an embedding table."""

    embedding_dim: int | None = Field(default=None, ge=4, le=256)
    """Floats of a row. Absent: no table; each value is a column of its own."""
    embedding_name: FeatureName | None = None
    """The table; features that name the same one share its rows. Absent: one of its own, by the feature's name."""
    pooling: Literal["sum", "mean"] = "sum"
    """Of several values in one row."""
    filter_freq: int | None = Field(default=None, ge=1)
    """Occurrences from which on a value gets a row of its own."""
    max_element_size: int | None = Field(default=None, ge=1)
    """Count occurrences in a Bloom filter for so many values."""
    steps_to_live: int | None = Field(default=None, ge=1)
    """Learner steps without a touch after which a row goes."""
    l2_weight_threshold: float | None = Field(default=None, gt=0)
    """A row whose norm is below goes."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows that the table may hold."""

    @model_validator(mode="after")
    def _table_keys_need_a_table(self) -> Encoded:
        of_table = ("embedding_name", "filter_freq", "max_element_size", "steps_to_live", "l2_weight_threshold", "max_rows")
        lost = [key for key in of_table if getattr(self, key) is not None]
        if self.embedding_dim is None and lost:
            raise ValueError(f"{lost[0]} is about an embedding table: give embedding_dim too, or leave {lost[0]} out")
        return self

    @property
    def table(self) -> str | None:
        """The name of its table; None when it has none."""
        return None if self.embedding_dim is None else self.embedding_name or self.feature_name

    @property
    def table_keys(self) -> TableKeys:
        """What it says about its table."""
        return TableKeys(
            self.embedding_dim or 0, self.filter_freq, self.max_element_size, self.steps_to_live, self.l2_weight_threshold, self.max_rows
        )


class WordsEntry(Encoded):
    """A feature whose values are words."""

    hash_bucket_size: int | None = Field(default=None, ge=1)
    """Words share so many buckets, by their hash."""
    num_buckets: int | None = Field(default=None, ge=1)
    """Words are the integers from 0 to below it; others are unknown."""
    vocab_list: tuple[Word, ...] | None = Field(default=None, min_length=1, max_length=100_000)
    """The known words; others are unknown."""
    default_value: Word | None = None
    """The word of an absent value. Absent: absence has a row or a column of its own."""

    @model_validator(mode="after")
    def _values_are_bounded(self) -> WordsEntry:
        named = [key for key in ("hash_bucket_size", "num_buckets", "vocab_list") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]}: only one of them")
        if self.vocab_list is not None and len(set(self.vocab_list)) != len(self.vocab_list):
            raise ValueError("vocab_list: a word is there twice")
        if self.embedding_dim is None and not self.stub_type:
            size = self.hash_bucket_size or self.num_buckets or len(self.vocab_list or ())
            if not 0 < size <= MAX_ONE_HOT:
                raise ValueError(
                    "without embedding_dim every value is a column: give vocab_list, num_buckets or hash_bucket_size of at most "
                    f"{MAX_ONE_HOT}{f' (there: {size})' if size else ''}, or embedding_dim"
                )
        return self


class IdFeature(WordsEntry):
    """Words: an id, a category, a list of tags."""

    KIND = "id_feature"
    expression: Reference

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return (self.expression,)


class ComboFeature(WordsEntry):
    """Every word of one feature with every word of others."""

    KIND = "combo_feature"
    expression: tuple[Reference, ...] = Field(min_length=2, max_length=8)

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return self.expression


class TokenizeFeature(WordsEntry):
    """The tokens of a text."""

    KIND = "tokenize_feature"
    expression: Reference
    tokenizer_type: Tokenizer = "words"
    """words: runs of letters and digits (of scripts without blanks: each sign); characters: each sign."""
    max_length: int = Field(default=64, ge=1, le=1_000)
    """Tokens kept, the first ones."""

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return (self.expression,)


class NumbersEntry(Encoded):
    """A feature whose value is a number, or several."""

    default_value: Finite | None = None
    """In place of an absent number. Absent: 0, and a column that says that it is absent."""
    clip: tuple[Finite, Finite] | None = None
    """(lowest, highest): numbers beyond are set to these. Absent: they stay."""
    normalizer: Annotated[str, AfterValidator(_check_normalizer)] | None = None
    """`method=log10,threshold=1e-10,default=-10`, `method=zscore,mean=,standard_deviation=`, `method=minmax,min=,max=` or
    `method=expression,expr=` with x for the number."""
    boundaries: tuple[Finite, ...] | None = Field(default=None, min_length=1)
    """Rising: the number becomes the bucket that it lies in, which begins at a boundary and ends before the next."""

    @model_validator(mode="after")
    def _bounds_rise(self) -> NumbersEntry:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError("clip must be [lowest, highest] with lowest < highest")
        bounds = self.boundaries
        if bounds is not None and list(bounds) != sorted(set(bounds)):
            raise ValueError("boundaries must rise")
        if self.embedding_dim is not None and bounds is None:
            raise ValueError("embedding_dim of a number needs boundaries: its bucket is the row")
        if bounds is not None and self.embedding_dim is None and len(bounds) >= MAX_ONE_HOT and not self.stub_type:
            raise ValueError(
                f"boundaries: they make {len(bounds) + 1} columns, at most {MAX_ONE_HOT} are allowed; give embedding_dim, or fewer"
            )
        return self


class RawFeature(NumbersEntry):
    """A number, or a vector of numbers."""

    KIND = "raw_feature"
    expression: Reference
    value_dim: int = Field(default=1, ge=1, le=MAX_VALUE_DIM)
    """Numbers of a vector."""
    raw_input_dim: int | None = Field(default=None, ge=1, le=MAX_VALUE_DIM)
    """EasyRec's name of value_dim."""

    @model_validator(mode="after")
    def _one_width(self) -> RawFeature:
        if self.raw_input_dim is not None and self.value_dim not in (1, self.raw_input_dim):
            raise ValueError(f"value_dim {self.value_dim} and raw_input_dim {self.raw_input_dim} are two names of one number; give one")
        if self.width > 1 and self.boundaries is not None:
            raise ValueError("boundaries are for one number, not for a vector")
        return self

    @property
    def width(self) -> int:
        """Numbers a row."""
        return self.raw_input_dim or self.value_dim

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return (self.expression,)


class LookupFeature(NumbersEntry):
    """What a map has for the words of a key."""

    KIND = "lookup_feature"
    map: Reference
    key: Reference
    combiner: Combiner = "sum"
    """Of the numbers of several keys."""

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return (self.map, self.key)


class MatchFeature(NumbersEntry):
    """What a nested map has for two keys, one of which may be ALL."""

    KIND = "match_feature"
    nested_map: Reference
    pkey: ReferenceOrAll
    skey: ReferenceOrAll
    combiner: Combiner = "sum"
    """Of the numbers of several pairs of keys."""

    @model_validator(mode="after")
    def _one_key_at_least(self) -> MatchFeature:
        if self.pkey == self.skey == ALL:
            raise ValueError("pkey and skey: one of them names a field")
        return self

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return tuple(reference for reference in (self.nested_map, self.pkey, self.skey) if reference != ALL)


class OverlapFeature(NumbersEntry):
    """How far the different words of two fields are the same."""

    KIND = "overlap_feature"
    query: Reference
    title: Reference
    method: Literal["query_common_ratio", "title_common_ratio", "is_contain", "is_equal"]
    """Share of the query's words that the title has; of the title's that the query has; whether it has all; whether both have the same."""

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return (self.query, self.title)


class ExprFeature(NumbersEntry):
    """An expression over numbers."""

    KIND = "expr_feature"
    expression: str
    variables: tuple[Reference, ...] = Field(min_length=1, max_length=32)
    """Fields; the expression calls each by its name behind the side."""

    @model_validator(mode="after")
    def _expression_is_one(self) -> ExprFeature:
        names = self.variable_names
        if len(set(names)) != len(names):
            raise ValueError("variables: two of them have the same name behind their side; give one of them a name by a feature of its own")
        unfit = [name for name in names if not name.isidentifier()]
        if unfit:
            raise ValueError(f"variables: {unfit[0]!r} cannot stand in an expression; give it a name by a raw_feature with stub_type")
        try:
            compile_expression(self.expression, names)
        except BadExpression as error:
            raise ValueError(f"expression: {error}") from error
        return self

    @property
    def variable_names(self) -> tuple[str, ...]:
        """What the expression calls its variables."""
        return tuple(reference.partition(":")[2] for reference in self.variables)

    def references(self) -> tuple[str, ...]:
        """Return what it reads."""
        return self.variables
