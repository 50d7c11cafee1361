import pytest
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.events.catalog import CatalogItem
from services.common.events.envelope import MalformedRecord
from services.common.events.wire.catalog import deleted_item, read_item


def value(**fields) -> bytes:
    return catalog_item_pb2.CatalogItem(**fields).SerializeToString()


def test_an_item_is_read_whole_with_its_attributes_sorted() -> None:
    raw = value(item_id="172", title="Heat", categories=["Crime", "Drama"], attributes={"year": "1995", "colour": "blue"}, updated_at_ms=7)
    assert read_item(b"172", raw, None) == CatalogItem(
        item_id="172", title="Heat", categories=("Crime", "Drama"), attributes=(("colour", "blue"), ("year", "1995")), updated_at_ms=7
    )


def test_where_the_value_names_no_item_the_key_does() -> None:
    """The feature stream alone took it so; the recommender kept such an item under an empty id."""
    assert read_item(b"172", value(title="Heat"), None).item_id == "172"
    assert read_item(b"other", value(item_id="172"), None).item_id == "172"


@pytest.mark.parametrize(
    ("key", "raw", "said"),
    [
        (b"1", b"\xff\xff", "not a tunemesh.catalog.v1.CatalogItem"),
        (None, value(title="Heat"), "item_id: it is empty"),
        # The retriever took ids of up to 512 bytes, which no request may name.
        (b"1", value(item_id="x" * 129), "item_id: it has 129 bytes"),
        (b"x" * 129, value(title="Heat"), "item_id: it has 129 bytes"),
        # Both ended the feature stream, at each start anew, once an act on the item had come.
        (b"1", value(categories=["x" * 65_536]), r"categories\[0\]: it has 65536 bytes; it must have 1 to 256"),
        (b"1", value(categories=map(str, range(65_536))), "categories: there are 65536; an item has at most 256"),
        (b"1", value(categories=["Drama", ""]), r"categories\[1\]: it is empty"),
    ],
)
def test_what_can_be_no_item_is_malformed(key, raw, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_item(key, raw, None)


def test_a_record_without_a_value_deletes_the_item_of_its_key() -> None:
    assert deleted_item("Käse".encode()) == "Käse"
    assert deleted_item(b"\xff") == "\ufffd"
    assert deleted_item(None) == ""
