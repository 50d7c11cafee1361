"""The world that wide data comes from: what was shown to whom, and how probable a click was in truth. Made in batches of bounded memory.

A click depends on one number, on the item, on the time, and on an interaction: whether the words of two categories, one of the request and
one of the item, are both even or both odd. Either of them alone says nothing, so whoever finds it has crossed the two. Everything else is
noise, as most columns of a wide table are. The shape (13 numbers, 26 categories) is that of Criteo's public display-advertising log.

Shapes: N rows of a batch, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CONTEXT_NUMBERS = tuple(f"n{at:02d}" for at in range(10))
ITEM_NUMBERS = tuple(f"m{at:02d}" for at in range(3))
CONTEXT_CATEGORIES = tuple(f"c{at:02d}" for at in range(20))
ITEM_CATEGORIES = tuple(f"k{at:02d}" for at in range(6))
PLANTED = "c01", "k01"
"""The category of the request and that of the item that decide together."""
NUM_USERS, NUM_ITEMS = 20_000, 500
BATCH_ROWS = 50_000

_BASE_LOGIT, _LATER_LOGIT = -2.0, -1.6
_OF_NUMBER, _OF_ITEM, OF_PLANTED = 0.6, 0.4, 1.2
_ABSENT = 0.05
_NEWER = 0.5
"""Of the words at the end of the log, the share that nobody had used at its beginning."""
_BEGIN_MS, _STEP_MS = 1_790_000_000_000, 2_000

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some impressions, in the order of time.

    Attributes:
        shown: user_id, item_id, kind ("click" or "impression"), time, and the columns of the request.
        truth_N: how probable a click was, float64.
        without_N: the same for whoever does not know the interaction.
    """

    shown: pa.Table
    truth_N: Floats
    without_N: Floats


@dataclass(frozen=True, slots=True)
class World:
    """Data of one seed: the same each time.

    Attributes:
        num_rows: impressions.
        largest: values of the largest category; the smallest has 10, those between grow by the same factor.
        seed: of everything.
    """

    num_rows: int
    largest: int = 10_000_000
    seed: int = 11

    def sizes(self) -> dict[str, int]:
        """Return by category how many values it has."""
        of_context = np.geomspace(10, self.largest, len(CONTEXT_CATEGORIES)).round().astype(int).tolist()
        of_items = np.geomspace(10, NUM_ITEMS, len(ITEM_CATEGORIES)).round().astype(int).tolist()
        sizes = dict(zip((*CONTEXT_CATEGORIES, *ITEM_CATEGORIES), (*of_context, *of_items), strict=True))
        return sizes | {name: sizes[name] // 2 * 2 for name in PLANTED}

    def items(self) -> pa.Table:
        """Return the items: item_id, their numbers and their categories."""
        numbers, words_of = self._items()
        ids = [f"i{item}" for item in range(NUM_ITEMS)]
        return pa.table({"item_id": ids, **numbers, **{name: _named(name, words) for name, words in words_of.items()}})

    def batches(self) -> Iterator[Batch]:
        """Yield all impressions."""
        _, of_items = self._items()
        item_logit_I = np.random.default_rng((self.seed, 2)).normal(0.0, _OF_ITEM, NUM_ITEMS)
        for start in range(0, self.num_rows, BATCH_ROWS):
            rng = np.random.default_rng((self.seed, 3, start))
            at_N = np.arange(start, min(start + BATCH_ROWS, self.num_rows))
            yield self._batch(rng, at_N, of_items[PLANTED[1]], item_logit_I)

    def _items(self) -> tuple[dict[str, Floats], dict[str, Ints]]:
        rng, sizes = np.random.default_rng((self.seed, 1)), self.sizes()
        numbers = {name: np.round(rng.lognormal(2.0, 1.0, NUM_ITEMS), 3) for name in ITEM_NUMBERS}
        words = {name: rng.integers(0, sizes[name], NUM_ITEMS) for name in ITEM_CATEGORIES}
        words[PLANTED[1]] = words[PLANTED[1]] // 2 * 2 + _balanced(NUM_ITEMS)
        return numbers, words

    def _batch(self, rng: np.random.Generator, at_N: Ints, planted_I: Ints, item_logit_I: Floats) -> Batch:
        progress_N, sizes = at_N / max(self.num_rows - 1, 1), self.sizes()
        user_N, item_N = _zipf(rng, NUM_USERS, len(at_N)), _zipf(rng, NUM_ITEMS, len(at_N))
        numbers = {name: rng.lognormal(1.0, 1.5, len(at_N)) for name in CONTEXT_NUMBERS}
        words = {name: _drifting(rng, sizes[name], progress_N) for name in CONTEXT_CATEGORIES}
        words[PLANTED[0]] = words[PLANTED[0]] // 2 * 2 + rng.integers(0, 2, len(at_N))
        first_N = numbers[CONTEXT_NUMBERS[0]]
        plain_N = (
            _BASE_LOGIT + (_LATER_LOGIT - _BASE_LOGIT) * progress_N + _OF_NUMBER * np.tanh(np.log(first_N) - 1.0) + item_logit_I[item_N]
        )
        planted_N = OF_PLANTED * _sign(words[PLANTED[0]]) * _sign(planted_I[item_N])
        truth_N = _sigmoid(plain_N + planted_N)
        is_click_N = rng.random(len(at_N)) < truth_N
        columns: dict[str, Any] = {
            "user_id": _named("u", user_N),
            "item_id": _named("i", item_N),
            "kind": np.where(is_click_N, "click", "impression"),
            "time": pa.array(_BEGIN_MS + at_N * _STEP_MS).cast(pa.timestamp("ms", "UTC")),
        }
        columns |= {name: _with_gaps(rng, np.round(values_N, 3)) for name, values_N in numbers.items()}
        columns |= {name: _named(name, words_N) for name, words_N in words.items()}
        without_N = (_sigmoid(plain_N + OF_PLANTED) + _sigmoid(plain_N - OF_PLANTED)) / 2
        return Batch(shown=pa.table(columns), truth_N=truth_N, without_N=without_N)


def spec_of(world: World, network: object = "dcn_din", *, max_rows: int = 100_000) -> dict[str, Any]:
    """Return the feature spec, as it stands in a file; no table has more than `max_rows` rows, or an eighth more for a moment."""
    sizes = world.sizes()
    numbers = [*((name, "context") for name in CONTEXT_NUMBERS), *((name, "item") for name in ITEM_NUMBERS)]
    categories = [*((name, "context") for name in CONTEXT_CATEGORIES), *((name, "item") for name in ITEM_CATEGORIES)]
    features: list[dict[str, Any]] = [
        {"raw_feature": {"feature_name": name, "expression": f"{side}:{name}", "normalizer": "method=log10"}} for name, side in numbers
    ]
    for name, side in categories:
        row = {"feature_name": name, "expression": f"{side}:{name}", "embedding_dim": 4}
        features.append({"id_feature": row | ({"max_rows": max_rows} if sizes[name] > max_rows else {})})
    return {
        "format": 2,
        "model": "ranker",
        "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
        "kinds": {"click": {}},
        "tasks": [{"name": "interact", "labels": {"click": 1}, "unanswered": 0}],
        "negatives": {"source": "impressions", "keep_rate": 1.0},
        "blend": {"interact": 1.0},
        "network": network,
        # Found by looking: at the default of 0.2 DIN, MMoE and PLE need more than 20,000 impressions for the planted interaction.
        "learning": {"feature_rate": 0.5},
        "features": features,
    }


def _zipf(rng: np.random.Generator, size: int, count: int) -> Ints:
    """Return ranks of [0, size), drawn in proportion to 1 / (rank + 1), nearly."""
    ranks: Ints = np.exp(rng.random(count) * np.log(size + 1.0)).astype(np.int64) - 1
    return np.minimum(ranks, size - 1)


def _balanced(size: int) -> Ints:
    """Return a 0 or 1 by rank, so that as many draws of `_zipf` are of the one as of the other."""
    found, more_ones = np.zeros(size, np.int64), 0.0
    for rank in range(size):
        found[rank] = more_ones < 0
        more_ones += np.log1p(1.0 / (rank + 1)) * (1.0 if found[rank] else -1.0)
    return found


def _drifting(rng: np.random.Generator, size: int, progress_N: Floats) -> Ints:
    """Return words of [0, size); large categories have two halves, and the later it is, the more words are of the second one."""
    if size < 1_000:
        return _zipf(rng, size, len(progress_N))
    half = size // 2
    return _zipf(rng, half, len(progress_N)) + half * (rng.random(len(progress_N)) < _NEWER * progress_N)


def _sign(words_N: Ints) -> Floats:
    return np.where(words_N % 2 == 0, 1.0, -1.0)


def _sigmoid(logits_N: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits_N))


def _named(prefix: str, numbers_N: Ints) -> pa.Array:
    return pa.array([f"{prefix}{number}" for number in numbers_N.tolist()])


def _with_gaps(rng: np.random.Generator, values_N: Floats) -> pa.Array:
    return pa.array(values_N, mask=rng.random(len(values_N)) < _ABSENT)
