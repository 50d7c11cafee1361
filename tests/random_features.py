"""Random lists of declared features, and random attributes for them: everything that a spec may say, over values that sources really hold.

The same seed gives the same list and rows. Imports in both environments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from services.common.ranker.declared.entries import Entry
from services.common.ranker.declared.entry_list import FeatureOne, feature_of

WORDS = (
    "a",
    "b",
    "Rome",
    "東京",
    "naïve café",
    "Ω",
    "5",
    "007",
    "x:y",
    "a^b:2",
    "🙂",
    " padded ",
    "Δ|δ,1",
    "true",
    "1e5",
    "0",
    "İstanbul",
    "\x1e",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    5,
    17,
    -0.0,
    0.5,
    2.25,
    1e-320,
    1e-7,
    3.14159,
    65504.0,
    7e4,
    -1e9,
    1e308,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    True,
)
MAPS = ("a:1.5", "b:2", "Rome:0.25", "東京:-3", "5:1e300", "a:0.1", "lonely", "bad:number", "5:nan", "1:7", "2:0.3")
NESTS = ("a^b:0.2,5:0.3|b^a:0.1", "Rome^東京:4", "5^1:0.7,2:0.9", "a^b:0.5", "broken", "a^x", "a^b:none")
EXPRESSIONS = (
    "log1p(x) / (1 + exp(-y))", "x if x > y else -y", "sqrt(abs(x)) ** 1.5 + tanh(y)", "sigmoid(x * 0.001 + y)", "x % 7 + floor(y / 3)",
    "coalesce(x, y, 3)", "is_absent(x) + (x <= y < 10)", "where(x > 0 and y > 0, log(x), log2(y))", "max(x, y, 0) - min(x, y)", "x / y",
    "not (x == y) or x != 0", "sin(x) + cos(y) + tan(x)", "sum(x, y, 1) * -2", "1 + 2", "log10(x) - log(y)", "rint(x)",
)  # fmt: skip
NORMALIZERS = (
    "method=log10", "method=log10,threshold=0.5,default=-1", "method=zscore,mean=2,standard_deviation=3", "method=minmax,min=-1,max=9",
    "method=expression,expr=sign(x) * log1p(abs(x))", "method=expression,expr=1 / x",
)  # fmt: skip
SIDES = ("user", "item", "context")
_FIELDS = ("number", "vector", "word", "list", "text", "map", "nest")


class RandomFeatures:
    """One random list of features and its rows."""

    def __init__(self, seed: int) -> None:
        """The same seed gives the same."""
        self.random = random.Random(seed)
        makers: tuple[Callable[[str], dict[str, Any]], ...] = (
            *(self._id, self._raw, self._combo, self._lookup, self._match),
            *(self._overlap, self._expr, self._tokenize, self._sequence, self._raw),
        )
        self._words: list[str] = []
        self._numbers: list[str] = []
        made = []
        for at in range(self.random.randint(1, 8)):
            made.append(self.random.choice(makers)(f"f{at}"))
        # The order of the file is not the order of needs.
        self.random.shuffle(made)
        self.raw = made
        adapter: TypeAdapter[Any] = TypeAdapter(FeatureOne)
        self.features: list[Entry] = [feature_of(adapter.validate_python(one)) for one in made]

    def row(self, side: str) -> dict[str, Any]:
        """Return attributes of one user, item or context; some are not there."""
        values = {
            "number": self._number_value,
            "vector": lambda: [self._number_value() for _ in range(3)],
            "word": lambda: self.random.choice((*WORDS, *NUMBERS)),
            "list": lambda: [self.random.choice((*WORDS, 5, 5.0, None)) for _ in range(self.random.randint(0, 6))],
            "text": lambda: " ".join(self.random.choices(WORDS, k=self.random.randint(0, 9))),
            "map": lambda: self.random.choice((self.random.choices(MAPS, k=self.random.randint(0, 8)), {"a": 1, "東京": 2.5, 5: None})),
            "nest": lambda: self.random.choices(NESTS, k=self.random.randint(0, 4)),
        }
        fields = {"number": "number", "other": "number", **{name: name for name in _FIELDS[1:]}}
        present = (name for name in fields if self.random.random() < 0.8)
        return {f"{side[0]}_{name}": self._absent() if self.random.random() < 0.1 else values[fields[name]]() for name in present}

    def history(self, num_items: int) -> tuple[list[int], list[float], list[float]]:
        """Return a user's latest events, newest first: of each which item it was of, its value, and seconds since then (NaN: not known)."""
        events = range(self.random.randint(0, 9))
        ages = [self.random.choice((math.nan, 0.0, 59.999, 60.0, self.random.uniform(0, 1e9))) for _ in events]
        return [self.random.randrange(num_items) for _ in events], [self.random.choice((0.0, 0.5, 1.0)) for _ in events], ages

    def _number_value(self) -> Any:
        return self.random.choice((*NUMBERS, None, math.nan, math.inf, self.random.uniform(-9, 9), self.random.lognormvariate(0, 9)))

    def _absent(self) -> Any:
        return self.random.choice((None, "", "  ", []))

    def _reference(self, field: str, *made: str) -> str:
        if made and self.random.random() < 0.3:
            return f"feature:{self.random.choice(made)}"
        side = self.random.choice(SIDES)
        return f"{side}:{side[0]}_{field}"

    def _of_words(self) -> str:
        return self._reference(self.random.choice(("word", "list", "word", "other")), *self._words, *self._numbers)

    def _encoding(self, name: str) -> dict[str, Any]:
        """Return keys of a feature of words."""
        self._words.append(name)
        values = self.random.choice(
            (
                {"vocab_list": ["a", "Rome", "東京", 5, "true"]},
                {"num_buckets": 18},
                {"hash_bucket_size": self.random.choice((1, 7, 64))},
                {},
            )
        )
        table = {} if values and self.random.random() < 0.6 else {"embedding_dim": 8}
        shared = {"embedding_name": "shared"} if table and self.random.random() < 0.3 else {}
        default = {"default_value": self.random.choice(("a", 5, "東京", "new"))} if self.random.random() < 0.3 else {}
        return {"feature_name": name, **values, **table, **shared, **default, "pooling": self.random.choice(("sum", "mean"))}

    def _number(self, name: str, *, narrow: bool = True) -> dict[str, Any]:
        """Return keys of a feature of numbers."""
        keys: dict[str, Any] = {"feature_name": name}
        if narrow:
            self._numbers.append(name)
        if narrow and self.random.random() < 0.3:
            keys["boundaries"] = [-1, 0, 0.5, 17]
            if self.random.random() < 0.5:
                keys["embedding_dim"] = 8
        for key, values in (("default_value", (0, -2.5, 1e9)), ("clip", ([-5, 5], [0, 1e6])), ("normalizer", NORMALIZERS)):
            if self.random.random() < 0.3:
                keys[key] = self.random.choice(values)
        return keys

    def _id(self, name: str) -> dict[str, Any]:
        expression = self._of_words()
        return {"id_feature": {"expression": expression, **self._encoding(name)}}

    def _raw(self, name: str) -> dict[str, Any]:
        if self.random.random() < 0.3:
            return {"raw_feature": {"expression": self._reference("vector"), "raw_input_dim": 3, **self._number(name, narrow=False)}}
        expression = self._reference(self.random.choice(("number", "other")), *self._numbers)
        return {"raw_feature": {"expression": expression, **self._number(name)}}

    def _combo(self, name: str) -> dict[str, Any]:
        expression = [self._of_words() for _ in range(self.random.randint(2, 3))]
        return {"combo_feature": {"expression": expression, **self._encoding(name)}}

    def _lookup(self, name: str) -> dict[str, Any]:
        keys = {"map": self._reference("map"), "key": self._of_words(), "combiner": self._combiner()}
        return {"lookup_feature": {**keys, **self._number(name)}}

    def _match(self, name: str) -> dict[str, Any]:
        first, second = self.random.choice(((True, True), (True, False), (False, True)))
        keys = {"pkey": self._of_words() if first else "ALL", "skey": self._of_words() if second else "ALL", "combiner": self._combiner()}
        return {"match_feature": {"nested_map": self._reference("nest"), **keys, **self._number(name)}}

    def _overlap(self, name: str) -> dict[str, Any]:
        method = self.random.choice(("query_common_ratio", "title_common_ratio", "is_contain", "is_equal"))
        return {"overlap_feature": {"query": self._of_words(), "title": self._of_words(), "method": method, **self._number(name)}}

    def _expr(self, name: str) -> dict[str, Any]:
        fields = [self._reference("number", *self._numbers), self._reference("other", *self._numbers)]
        names = [field.partition(":")[2] for field in fields]
        if len(set(names)) == 1:
            fields = fields[:1]
        text = self.random.choice(EXPRESSIONS)
        for letter, variable in zip("xy", names, strict=True):
            text = _renamed(text, letter, variable)
        return {"expr_feature": {"expression": text, "variables": fields, **self._number(name)}}

    def _tokenize(self, name: str) -> dict[str, Any]:
        kind = self.random.choice(("words", "characters"))
        keys = {"expression": self._reference("text"), "tokenizer_type": kind, "max_length": self.random.choice((1, 5, 64))}
        return {"tokenize_feature": {**keys, **self._encoding(name)}}

    def _sequence(self, name: str) -> dict[str, Any]:
        shared = {"embedding_name": "shared"} if self.random.random() < 0.3 else {}
        pooling = self.random.choice(("sum", "mean"))
        words = self.random.choice(({}, {"hash_bucket_size": 7}, {"vocab_list": ["a", "Rome", 5], "default_value": "a"}))
        field = self.random.choice(("item:i_word", "item:i_list", "item:i_other"))
        parts = [
            {"id_feature": {"feature_name": "category", "expression": field, "embedding_dim": 8, "pooling": pooling, **words, **shared}},
            {"id_feature": {"feature_name": "id", "expression": "sequence:item_id", "embedding_dim": 4, **words}},
            {"raw_feature": {"feature_name": "number", "expression": "item:i_number", "embedding_dim": 4, "boundaries": [-1, 0.5]}},
            {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "embedding_dim": 8, "boundaries": [60, 3600]}},
            {"raw_feature": {"feature_name": "value", "expression": "sequence:value", "embedding_dim": 4, "boundaries": [0.5]}},
        ]
        kept = self.random.sample(parts, self.random.randint(1, len(parts)))
        return {"sequence_feature": {"sequence_name": name, "sequence_length": self.random.choice((1, 3, 20)), "features": kept}}

    def _combiner(self) -> str:
        return self.random.choice(("sum", "mean", "min", "max"))


def _renamed(text: str, letter: str, variable: str) -> str:
    """Return an expression with a variable of one letter renamed; `exp` and `max` keep their x."""
    signs = f" {text} "
    inside = range(1, len(signs) - 1)
    alone = [at for at in inside if signs[at] == letter and not signs[at - 1].isalnum() and not signs[at + 1].isalnum()]
    for at in reversed(alone):
        signs = signs[:at] + variable + signs[at + 1 :]
    return signs.strip()
