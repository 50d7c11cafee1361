import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from services.common.platform.ids import entity_key
from services.common.ranker.tables.reader import TableNotReady
from services.recommender.nearest import EmbeddingRecall, Snapshot


class FakeReader:
    """Two bias dimensions, then two content dimensions."""

    def __init__(self) -> None:
        self.tables = {
            "user": {7: [0.0, 0.0, 1.0, 0.0]},
            "item": {1: [0.0, 9.0, 3.0, 0.0], 2: [2.5, 0.0, 1.0, 0.0], 3: [0.0, 0.0, 0.0, 4.0], 4: [0.0, 0.0, -1.0, 0.0]},
        }
        self.scale = 1.0

    def read(self, ids):
        default = [0.0] * 4
        rows = {table: [self.tables[table].get(key, default) for key in keys] for table, keys in ids.items()}
        return SimpleNamespace(
            rows={table: np.array(values, np.float32).reshape(-1, 4) for table, values in rows.items()},
            found={table: np.array([key in self.tables[table] for key in keys], bool) for table, keys in ids.items()},
        )

    def dense(self):
        return SimpleNamespace(tensors={"dot_scale": np.array([self.scale, 99.0], np.float32)})

    def iter_rows(self, table):
        rows = self.tables[table]
        return np.array(list(rows), np.int64), np.array(list(rows.values()), np.float32)


def recall_over(reader: FakeReader, known: set[str] | None = None) -> EmbeddingRecall:
    names = {entity_key(item_id): item_id for item_id in known or {"1", "2", "3", "4"}}
    recall = EmbeddingRecall(lambda: reader, names.get, num_reserved_dims=2, refresh_s=60.0)
    recall.refresh()
    return recall


async def test_items_are_ordered_by_dot_product_plus_the_first_tasks_bias():
    assert await recall_over(FakeReader()).nearest("7", [], 10) == ["2", "1", "3", "4"]


async def test_the_scale_that_the_network_learned_weighs_the_dot_product_against_the_bias():
    reader = FakeReader()
    reader.scale = 2.0
    assert (await recall_over(reader).nearest("7", [], 10))[:2] == ["1", "2"]


async def test_history_moves_the_query_and_makes_up_for_a_user_without_a_row():
    recall = recall_over(FakeReader())
    assert (await recall.nearest("new", ["3"], 1)) == ["3"]
    assert (await recall.nearest("7", ["3", "3"], 1)) == ["3"]


async def test_a_user_without_row_and_history_gets_nothing():
    assert await recall_over(FakeReader()).nearest("new", [], 10) == []
    assert await recall_over(FakeReader()).nearest("new", ["unknown"], 10) == []


async def test_items_that_the_catalogue_does_not_hold_are_left_out():
    assert await recall_over(FakeReader(), known={"1", "4"}).nearest("7", [], 10) == ["1", "4"]


async def test_only_the_best_are_returned():
    assert await recall_over(FakeReader()).nearest("7", [], 2) == ["2", "1"]


async def test_before_the_first_base_recall_is_empty_and_it_fills_up_when_the_tables_come():
    reader = FakeReader()
    attempts = []

    def open_reader():
        attempts.append(1)
        if len(attempts) < 3:
            raise TableNotReady("no base yet")
        return reader

    recall = EmbeddingRecall(open_reader, str, num_reserved_dims=2, refresh_s=0.01)
    recall.refresh()
    assert await recall.nearest("7", [], 10) == []
    task = asyncio.create_task(recall.run())
    while not await recall.nearest("7", [], 10):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_snapshot_smaller_than_the_limit_gives_all_it_has():
    rows = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], np.float32)
    snapshot = Snapshot.of_rows(np.array([5, 6, 7]), rows, num_reserved_dims=1, scale=1.0)
    assert snapshot.best(np.array([1.0], np.float32), 10).tolist() == [6, 7, 5]
    assert snapshot.best(np.array([1.0], np.float32), 2).tolist() == [6, 7]
