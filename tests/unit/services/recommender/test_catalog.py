import heapq
import random
from dataclasses import dataclass

import pytest
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.platform.ids import entity_key
from services.recommender import catalog
from services.recommender.catalog import ItemIndex


@dataclass
class Record:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None
    partition: int = 0
    offset: int = 0


def item(item_id: str, *categories: str, updated_at_ms: int = 0) -> Record:
    message = catalog_item_pb2.CatalogItem(item_id=item_id, categories=categories, updated_at_ms=updated_at_ms)
    return Record(item_id.encode(), message.SerializeToString())


def test_the_newest_record_of_an_item_counts():
    index = ItemIndex(10)
    index.extend([item("1", "Drama"), item("1", "Comedy", "War")])
    assert index.categories("1") == ("Comedy", "War")
    assert len(index) == 1


def test_an_unknown_item_has_no_categories():
    assert ItemIndex(10).categories("1") == ()


def test_a_null_value_deletes_the_item():
    index = ItemIndex(10)
    index.extend([item("1", "Drama"), Record(b"1", None), Record(b"2", None)])
    assert index.categories("1") == () and index.item_id(1) is None and index.newest() == ()


def test_a_refused_record_is_named_by_the_begin_of_its_key(caplog):
    index = ItemIndex(10)
    index.extend([Record(b"k" * 1_000_000, b"no item", offset=7), Record(None, b"no item", offset=8)])
    assert "the record at offset 7 with key b'kkk" in caplog.text and "offset 8 with key b''" in caplog.text
    assert len(caplog.text) < 2_000


def test_newest_items_come_first_and_only_so_many():
    index = ItemIndex(2)
    index.extend([item("a", updated_at_ms=1), item("b", updated_at_ms=3), item("c", updated_at_ms=2)])
    assert index.newest() == ("b", "c")
    index.extend([item("a", updated_at_ms=9)])
    assert index.newest() == ("a", "b")


def test_an_item_is_found_by_its_table_key():
    index = ItemIndex(10)
    index.extend([item("17"), item("a-word")])
    assert index.item_id(17) == "17"
    assert index.item_id(entity_key("a-word")) == "a-word"
    assert index.item_id(18) is None


def test_json_is_read_and_an_unreadable_record_does_not_stop_the_others():
    index = ItemIndex(10)
    json_item = Record(b"2", b'{"itemId": "2", "categories": ["War"]}', [("content-type", b"application/json")])
    index.extend([Record(b"1", b"\xff\xff"), json_item, item("3", "Drama")])
    assert index.categories("2") == ("War",) and index.categories("3") == ("Drama",) and len(index) == 2


def test_an_item_that_nobody_could_ask_for_is_left_out(caplog):
    index = ItemIndex(10)
    nameless = Record(None, catalog_item_pb2.CatalogItem(title="?").SerializeToString())
    index.extend([nameless, item("x" * 129), item("1", "Drama")])
    assert len(index) == 1 and index.newest() == ("1",)
    assert caplog.text.count("left out") == 2


@pytest.mark.parametrize("seed", range(4))
def test_the_newest_are_those_that_sorting_the_whole_catalogue_gives(seed: int) -> None:
    source, index, updated = random.Random(seed), ItemIndex(10), dict[str, int]()
    for _ in range(300):
        records = []
        for _ in range(source.randrange(8)):
            name = f"i{source.randrange(60)}"
            if source.random() < 0.3:
                records.append(Record(name.encode(), None))
                updated.pop(name, None)
            else:
                updated[name] = source.randrange(1, 40)  # older or newer than before
                records.append(item(name, updated_at_ms=updated[name]))
        index.extend(records)
        assert list(index.newest()) == sorted(updated, key=lambda name: (-updated[name], name))[:10]


def test_a_poll_without_records_looks_at_nothing_and_one_with_few_at_few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    index = ItemIndex(10)
    index.extend([item(str(number), updated_at_ms=number + 1) for number in range(20_000)])
    pops = []
    monkeypatch.setattr(catalog.heapq, "heappop", lambda heap, pop=heapq.heappop: pops.append(1) or pop(heap))
    index.extend([])
    assert pops == []
    index.extend([item("new", updated_at_ms=99_999), Record(b"19999", None)])
    assert index.newest()[:2] == ("new", "19998")
    assert len(pops) <= 12


def test_changes_of_items_do_not_pile_up() -> None:
    index = ItemIndex(5)
    for change in range(30_000):
        index.extend([item(str(change % 10), updated_at_ms=change + 1)])
    assert len(index._by_age) < 2_000
    assert index.newest() == ("9", "8", "7", "6", "5")


def test_it_tells_which_items_came_and_went_once() -> None:
    index = ItemIndex(10)
    index.extend([item("1"), item("2"), item("1", "War"), Record(b"2", None), Record(b"3", None)])
    assert index.take_key_changes() == [(1, True), (2, True), (2, False)]
    assert index.take_key_changes() == []
    index.extend([item("2")])
    assert index.take_key_changes() == [(2, True)]
