"""Writes the files of a shop that does not exist, in place of your own: `python -m loadtests.example_shop FOLDER`.

`events.parquet` has a row for what somebody did with an item: user, item, time, action (view, cart, buy), and the city that the user lives
in. `items.parquet` has a row for an item: its id, title, category and price. People in Oslo take what is dear, people in Rome what is
cheap; nothing else decides what they take but how popular an item is. The same files each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CITIES = ("Oslo", "Rome")
NUM_USERS, NUM_ITEMS, NUM_EVENTS = 4_000, 200, 20_000
_TASTE = (2.0, -2.0)
"""How strongly people of a city go by price: the exponent's factor for one standard deviation of its logarithm."""
_BEGIN_S, _SECONDS = 1_790_000_000, 30 * 86_400


def tables(seed: int = 7) -> tuple[pa.Table, pa.Table]:
    """Return the events and the items."""
    rng = np.random.default_rng(seed)
    price_I = np.round(np.exp(rng.uniform(np.log(5), np.log(500), NUM_ITEMS)), 2)
    category_I = rng.choice(["books", "garden", "music", "tools"], NUM_ITEMS)
    popularity_I = rng.gamma(2.0, 1.0, NUM_ITEMS)
    scale_I = np.log(price_I)
    scale_I = (scale_I - scale_I.mean()) / scale_I.std()
    chance_CI = np.stack([popularity_I * np.exp(taste * scale_I) for taste in _TASTE])
    chance_CI /= chance_CI.sum(axis=1, keepdims=True)
    city_U = rng.choice(len(CITIES), NUM_USERS)
    user_N = rng.integers(0, NUM_USERS, NUM_EVENTS)
    item_N = np.array([rng.choice(NUM_ITEMS, p=chance_CI[city_U[user]]) for user in user_N])
    time_N = _BEGIN_S * 1_000 + np.sort(rng.integers(0, _SECONDS, NUM_EVENTS)) * 1_000
    ids = np.array([f"sku-{item:03d}" for item in range(NUM_ITEMS)])
    events = {
        "user": [f"u{user}" for user in user_N],
        "item": ids[item_N],
        "time": pa.array(time_N).cast(pa.timestamp("ms")),
        "action": rng.choice(["view", "cart", "buy"], NUM_EVENTS, p=[0.8, 0.12, 0.08]),
        "city": np.array(CITIES)[city_U[user_N]],
    }
    titles = [f"{category.title()} {item}" for item, category in enumerate(category_I)]
    items = {"item": ids, "title": titles, "categories": [[category] for category in category_I], "price": price_I}
    return pa.table(events), pa.table(items)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.example_shop", description="Write the files of a shop that does not exist.")
    parser.add_argument("folder", type=Path, help="where to write events.parquet and items.parquet")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("events", "items"), tables(), strict=True):
        pq.write_table(table, folder / f"{name}.parquet")
        print(f"{folder}/{name}.parquet: {len(table):,} rows: {', '.join(table.column_names)}")


if __name__ == "__main__":
    main()
