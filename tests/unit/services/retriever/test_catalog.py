from __future__ import annotations

from types import SimpleNamespace

import pytest
from tunemesh.catalog.v1 import catalog_item_pb2

from services.common.events.catalog import CatalogItem
from services.retriever.catalog import CatalogDocuments, document_of
from services.retriever.core.documents import ChunkLimits, Document, IndexedPassage, cut, passages_of

LIMITS = ChunkLimits(max_tokens=200, overlap_tokens=40)


def cut_into(document: Document, limits: ChunkLimits) -> list[IndexedPassage]:
    return passages_of(cut(document, limits))


def record(offset: int, item_id: str, title: str | None = "Title", **fields) -> SimpleNamespace:
    value = None if title is None else catalog_item_pb2.CatalogItem(item_id=item_id, title=title, **fields).SerializeToString()
    return SimpleNamespace(key=item_id.encode(), value=value, headers=[], partition=0, offset=offset)


class Bell:
    rings = 0

    def __call__(self) -> None:
        self.rings += 1


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def catalog(bell) -> CatalogDocuments:
    return CatalogDocuments(LIMITS, bell)


def test_an_item_is_a_passage_from_which_its_categories_and_attributes_can_be_answered():
    item = CatalogItem(
        item_id="172", title="Empire Strikes Back", categories=("Action", "Sci-Fi"), attributes={"empty": "", "release_year": "1980"}
    )
    (passage,) = cut_into(document_of(item, LIMITS), LIMITS)
    assert (passage.passage_id, passage.source, passage.title) == ("catalog:172", "catalog", "Empire Strikes Back")
    assert passage.text == "Categories: Action, Sci-Fi. Release year: 1980."


def test_attributes_of_every_kind_are_worded_and_a_vector_is_left_out():
    typed = {"bulky": False, "colours": ("red", "blue"), "embedding": (0.25, 0.5), "none": (), "price": 7.5, "year": 1995}
    (passage,) = cut_into(document_of(CatalogItem(item_id="1", title="T", attributes=typed), LIMITS), LIMITS)
    assert passage.text == "Bulky: false. Colours: red, blue. Price: 7.5. Year: 1995."
    texts = {name: str(value) for name, value in {"price": 7.5, "year": 1995}.items()}
    of_before = document_of(CatalogItem(item_id="1", title="T", attributes=texts), LIMITS)
    assert of_before == document_of(CatalogItem(item_id="1", title="T", attributes={"price": 7.5, "year": 1995}), LIMITS)


def test_a_long_attribute_is_text_of_its_own():
    item = CatalogItem(item_id="1", title="T", attributes={"plot": "First.\n\n" + "A long story. " * 100, "year": "1980"})
    found = cut_into(document_of(item, LIMITS), LIMITS)
    assert len(found) > 1 and found[0].text.startswith("Year: 1980.") and found[1].passage_id == "catalog:1#2"


def test_an_item_with_nothing_but_a_title_or_an_id_is_found_by_it():
    assert cut_into(document_of(CatalogItem(item_id="1", title="Alien"), LIMITS), LIMITS)[0].text == "Alien."
    assert cut_into(document_of(CatalogItem(item_id="sku-1"), LIMITS), LIMITS)[0].title == "sku-1"


def test_the_hash_ignores_what_is_not_shown():
    def hash_of(**fields) -> str:
        return document_of(CatalogItem(item_id="1", title="T", **fields), LIMITS).content_hash

    assert hash_of(updated_at_ms=1) == hash_of(updated_at_ms=2) != hash_of(categories=("Drama",))


def test_the_whole_topic_comes_first_and_changes_after_it(catalog, bell):
    assert catalog.take() is None
    catalog.begin([record(0, "1", "Old"), record(1, "2"), record(2, "1", "New"), record(3, "2", None)])
    taken = catalog.take()
    assert taken.is_whole and taken.next_offset == 4 and bell.rings == 1
    assert taken.documents["catalog:1"].title == "New" and taken.documents["catalog:2"] is None
    assert catalog.take() is None
    catalog.extend([record(4, "3")])
    taken = catalog.take()
    assert not taken.is_whole and list(taken.documents) == ["catalog:3"] and taken.next_offset == 5 and bell.rings == 2


def test_changes_that_nobody_took_yet_add_up_by_item(catalog):
    catalog.begin([record(0, "1", "A")])
    catalog.extend([record(1, "1", "B")])
    catalog.extend([record(2, "1", "C"), record(3, "2")])
    taken = catalog.take()
    assert taken.is_whole and taken.documents["catalog:1"].title == "C" and taken.next_offset == 4


def test_an_empty_topic_is_news_but_not_the_whole_catalogue(catalog):
    catalog.begin([])
    taken = catalog.take()
    assert taken is not None and not taken.is_whole and taken.documents == {} and taken.next_offset == 0


def test_what_could_not_be_indexed_comes_again_under_what_came_meanwhile(catalog):
    catalog.begin([record(0, "1", "A"), record(1, "2", "A")])
    taken = catalog.take()
    catalog.extend([record(2, "1", "B")])
    catalog.give_back(taken)
    again = catalog.take()
    assert again.is_whole and again.next_offset == 3
    assert (again.documents["catalog:1"].title, again.documents["catalog:2"].title) == ("B", "A")


def test_what_could_not_be_indexed_is_forgotten_when_the_topic_was_read_anew(catalog):
    catalog.begin([record(0, "1")])
    taken = catalog.take()
    catalog.begin([record(0, "9")])
    catalog.give_back(taken)
    assert list(catalog.take().documents) == ["catalog:9"]


@pytest.mark.parametrize(
    "bad", [SimpleNamespace(key=b"x", value=b"\xff\xff", headers=[], partition=0, offset=1), record(1, ""), record(1, "x" * 129)]
)
def test_an_unusable_record_is_left_out_and_counts_as_read(catalog, bad, caplog):
    catalog.begin([record(0, "1"), bad])
    taken = catalog.take()
    assert list(taken.documents) == ["catalog:1"] and taken.next_offset == 2
    assert "left out" in caplog.text
