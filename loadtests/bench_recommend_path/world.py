"""The made-up service that is measured: a catalogue, users with histories, online states of two partitions. Seeded.

Runs under any checkout of the project, so it uses only what a base or a state is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from services.common.ranker.feature_records import BASE_PARTIAL, global_key, item_key, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState

NUM_ITEMS = 2_000
NUM_USERS = 300
NUM_CANDIDATES = 100
PARTITIONS = 2
_ACTS = 24_000
_CATEGORIES = tuple(f"genre-{number}" for number in range(18))


def categories() -> dict[str, tuple[str, ...]]:
    """Return the catalogue: one to four of 18 categories an item, as films have genres."""
    rng = np.random.default_rng(1)
    return {
        str(number): tuple(_CATEGORIES[at] for at in rng.choice(len(_CATEGORIES), size=int(rng.integers(1, 5)), replace=False))
        for number in range(NUM_ITEMS)
    }


def records(spec: FeatureSpec) -> Iterator[tuple[str, bytes]]:
    """Yield (Redis key, packed state) as the base and the feature stream's two partitions would leave them."""
    rng = np.random.default_rng(2)
    partials = (BASE_PARTIAL, *(str(number) for number in range(PARTITIONS)))
    of_item, shares = categories(), (0.6, 0.2, 0.2)
    popularity = rng.permutation(np.arange(1, NUM_ITEMS + 1) ** -0.8)
    drawn = rng.choice(NUM_ITEMS, size=_ACTS, p=popularity / popularity.sum())
    totals = {partial: GlobalState(partitions=1 if partial == BASE_PARTIAL else PARTITIONS) for partial in partials}
    users: dict[str, UserState] = {}
    items: dict[tuple[str, str], ItemState] = {}
    for item in drawn.tolist():
        partial = partials[int(rng.choice(3, p=shares))]
        user_id, item_id = str(int(rng.integers(NUM_USERS))), str(item)
        act = Interaction(user_id, item_id, "rating", float(rng.integers(1, 6)), 0)
        totals[partial].apply(spec, act, of_item[item_id], -1)
        users.setdefault(user_id, UserState()).apply(spec, act, of_item[item_id], -1)
        items.setdefault((item_id, partial), ItemState()).apply(spec, act, totals[partial].clock, -1)
    yield from ((user_key(user_id), user.to_bytes()) for user_id, user in users.items())
    yield from ((item_key(*key), item.to_bytes(spec)) for key, item in items.items())
    yield from ((global_key(partial), total.to_bytes()) for partial, total in totals.items())


def requests(seed: int, count: int) -> list[tuple[str, Sequence[str]]]:
    """Return (user id, candidates) of `count` requests: a hundred different items each, a user in ten unknown."""
    rng = np.random.default_rng((3, seed))
    return [
        (str(int(rng.integers(NUM_USERS * 10 // 9))), [str(item) for item in rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False).tolist()])
        for _ in range(count)
    ]
