from dataclasses import dataclass

from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.platform.ids import entity_key
from services.recommender.catalog import ItemIndex


@dataclass
class Record:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None


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
