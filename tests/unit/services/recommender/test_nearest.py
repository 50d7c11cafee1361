import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from services.common.platform.ids import entity_key
from services.common.ranker.tables.reader import TableNotReady
from services.recommender import nearest
from services.recommender.nearest import EmbeddingRecall, ItemRows


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


class FakeItems:
    """The catalogue's items."""

    def __init__(self, *item_ids: str) -> None:
        self.names: dict[int, str] = {}
        self.changes: list[tuple[int, bool]] = []
        for item_id in item_ids:
            self.add(item_id)

    def add(self, item_id: str) -> None:
        self.names[entity_key(item_id)] = item_id
        self.changes.append((entity_key(item_id), True))

    def remove(self, item_id: str) -> None:
        del self.names[entity_key(item_id)]
        self.changes.append((entity_key(item_id), False))

    def item_id(self, key: int) -> str | None:
        return self.names.get(key)

    def take_key_changes(self) -> list[tuple[int, bool]]:
        changes, self.changes = self.changes, []
        return changes


def recall_over(reader: FakeReader, items: FakeItems | None = None) -> EmbeddingRecall:
    recall = EmbeddingRecall(lambda: reader, items or FakeItems("1", "2", "3", "4"), num_reserved_dims=2, refresh_s=60.0)
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
    assert await recall_over(FakeReader(), FakeItems("1", "4")).nearest("7", [], 10) == ["1", "4"]


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

    recall = EmbeddingRecall(open_reader, FakeItems("1", "2"), num_reserved_dims=2, refresh_s=0.01)
    recall.refresh()
    assert await recall.nearest("7", [], 10) == []
    task = asyncio.create_task(recall.run())
    while not await recall.nearest("7", [], 10):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_items_come_and_go_with_the_catalogue_and_rows_with_the_tables():
    reader, items = FakeReader(), FakeItems("1", "2", "no row yet")
    recall = recall_over(reader, items)
    assert await recall.nearest("7", [], 10) == ["2", "1"]
    items.remove("2")
    assert await recall.nearest("7", [], 10) == ["1"]  # its name is gone at once
    items.add("4")
    reader.tables["item"][entity_key("no row yet")] = [9.0, 0.0, 0.0, 0.0]
    recall.refresh()
    assert await recall.nearest("7", [], 10) == ["no row yet", "1", "4"]
    reader.tables["item"][1] = [20.0, 0.0, 0.0, 0.0]
    del reader.tables["item"][4]
    recall.refresh()
    assert await recall.nearest("7", [], 10) == ["1", "no row yet"]


async def test_a_turn_reads_the_same_number_of_rows_of_every_catalogue_and_new_items_first(monkeypatch):
    monkeypatch.setattr(nearest, "_ROWS_A_TURN", 100)
    monkeypatch.setattr(nearest, "_ROWS_A_LOOK", 30)

    class CountingReader(FakeReader):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[int] = []

        def read(self, ids):
            self.asked.append(len(ids["item"]))
            return super().read(ids)

    reader, items = CountingReader(), FakeItems(*map(str, range(3_000)))
    reader.tables["item"] = {number: [0.0, 0.0, number / 1000, 0.0] for number in range(3_000)}
    recall = EmbeddingRecall(lambda: reader, items, num_reserved_dims=2, refresh_s=60.0)
    turns = 1
    while not recall.refresh():
        assert sum(reader.asked) <= 100 and max(reader.asked) <= 30
        reader.asked.clear()
        turns += 1
    assert turns == 30
    assert await recall.nearest("7", [], 3) == ["2999", "2998", "2997"]
    # Every row is renewed within as many turns as there are hundreds of places.
    reader.tables["item"] = {number: [0.0, 0.0, -number / 1000, 0.0] for number in range(3_000)}
    for _ in range(4_096 // 100 + 1):
        recall.refresh()
    assert await recall.nearest("7", [], 3) == ["0", "1", "2"]
    items.add("new")
    reader.tables["item"][entity_key("new")] = [0.0, 0.0, 5.0, 0.0]
    recall.refresh()
    assert await recall.nearest("7", [], 1) == ["new"]


def test_places_grow_are_reused_and_a_search_over_fewer_than_the_limit_gives_all_it_has():
    rows = ItemRows(num_reserved_dims=1)
    assert rows.best(np.array([1.0], np.float32), 1.0, 5) == []
    for key in range(5_000):
        rows.renew(np.array([rows.add(key)]), np.array([[0.0, float(key)]], np.float32), np.array([True]))
    assert len(rows) == 5_000
    assert rows.best(np.array([1.0], np.float32), 1.0, 3) == [4_999, 4_998, 4_997]
    for key in range(5_000):
        if key not in (5, 7):
            rows.remove(key)
    assert rows.best(np.array([1.0], np.float32), 1.0, 10) == [7, 5]
    place = rows.add(9)
    assert rows.best(np.array([1.0], np.float32), 1.0, 10) == [7, 5]  # not read yet
    rows.renew(np.array([place]), np.array([[0.0, 6.0]], np.float32), np.array([True]))
    assert rows.best(np.array([1.0], np.float32), 1.0, 10) == [7, 9, 5]
