"""Measure what the catalogue's size costs the online path: `python -m loadtests.bench_catalogue [NUM_ITEMS]`. No assertion.

A column of 10,000 items and one of NUM_ITEMS, by default a million; medians in milliseconds. None of the three grows with the catalogue:
the popular items that a flush of the feature stream writes, a poll of the catalogue with two changes, a turn of the item rows' renewal
(50,000 rows of a larger catalogue).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.platform.ids import entity_key
from services.common.ranker.recall_state import MAX_POPULAR, Popularity
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.recommender.catalog import ItemIndex
from services.recommender.nearest import EmbeddingRecall

DIM = 16


def record(number: int, updated_at_ms: int) -> Any:
    """A record of catalog.v1."""
    item = catalog_item_pb2.CatalogItem(item_id=f"i{number}", categories=["Drama"], updated_at_ms=updated_at_ms)
    return SimpleNamespace(key=item.item_id.encode(), value=item.SerializeToString(), headers=None, partition=0, offset=number)


def median_ms(work: Callable[[int], object], repeats: int) -> float:
    """Return the median time of work(i), in milliseconds."""
    took = np.empty(repeats)
    for i in range(repeats):
        started = time.perf_counter()
        work(i)
        took[i] = time.perf_counter() - started
    return float(np.median(took) * 1e3)


def flush(num_items: int) -> float:
    """An act, and the popular items after it."""
    popular = Popularity(100_000, {f"i{number}": (1.0 + number % 97, float(number % 1_000)) for number in range(num_items)})

    def work(i: int) -> None:
        popular.add(f"i{i * 37 % num_items}", 1_000.0 + i)
        popular.top(1_000.0 + i, MAX_POPULAR)

    return median_ms(work, 500)


def poll(index: ItemIndex, num_items: int) -> float:
    """Two changes of the catalogue."""
    return median_ms(lambda i: index.extend([record(i % num_items, num_items + i), record(num_items + i, num_items + i)]), 500)


def renewal(index: ItemIndex, num_items: int, directory: Path) -> float:
    """One turn, once every item has been looked up."""
    ids = np.array([entity_key(f"i{number}") for number in range(num_items)], np.int64)
    rows = np.random.default_rng(0).normal(size=(num_items, DIM)).astype(np.float32)
    tables = {"item": TableImage(ids, rows, np.zeros(DIM, np.float32))}
    writer = ModelWriter(directory, "bench")
    weights = {"dot_scale": np.ones(1, np.float32)}
    writer.build(tables, weights, Applied(epoch=1, seq=-1, watermark_ms=0, base_id="base"), lineage_id="bench")
    recall = EmbeddingRecall(lambda: ModelReader(directory, "bench"), index, num_reserved_dims=2, refresh_s=1.0)
    while not recall.refresh():
        pass
    took = median_ms(lambda _: recall.refresh(), 20)
    writer.close()
    return took


def column(num_items: int) -> dict[str, float]:
    """What each costs at this size."""
    index = ItemIndex(200)
    index.begin([record(number, number + 1) for number in range(num_items)])
    with tempfile.TemporaryDirectory() as directory:
        turn = renewal(index, num_items, Path(directory))
    return {"flush": flush(num_items), "renewal": turn, "poll": poll(index, num_items)}


def main() -> None:
    """Measure both sizes."""
    sizes = 10_000, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    columns = [column(num_items) for num_items in sizes]
    print(f"{'ms at':10}" + "".join(f"{num_items:>12,}" for num_items in sizes))
    for name in columns[0]:
        print(f"{name:10}" + "".join(f"{values[name]:12.2f}" for values in columns))


if __name__ == "__main__":
    main()
