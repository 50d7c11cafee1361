from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.retriever.core.documents import ChunkLimits, Document, IndexedPassage, Section, cut, hash_of, passages_of
from services.retriever.core.text import clean, num_tokens

LIMITS = ChunkLimits(max_tokens=20, overlap_tokens=6)


def cut_into(document: Document, limits: ChunkLimits) -> list[IndexedPassage]:
    return passages_of(cut(document, limits))


def document(*sections: Section, source: str = "files", title: str = "Rentals") -> Document:
    return Document(document_id="docs/a.md", source=source, title=title, sections=sections, content_hash="hash")


def section(*paragraphs: str, heading: str = "") -> Section:
    return Section(heading=heading, paragraphs=paragraphs)


def test_a_short_document_is_one_passage_with_all_that_is_known_of_it():
    (passage,) = cut_into(document(section("Films go back within a week.")), LIMITS)
    assert (passage.passage_id, passage.document_id, passage.source) == ("docs/a.md#1", "docs/a.md", "files")
    assert (passage.title, passage.text, passage.content_hash) == ("Rentals", "Films go back within a week.", "hash")
    assert passage.search_text == "Rentals\nFilms go back within a week."


def test_a_catalogue_item_is_one_passage_with_the_items_own_id_and_further_ones_are_numbered():
    long = section("First part.", " ".join(["Then a sentence of eight words or so."] * 5))
    found = cut_into(document(long, source="catalog"), LIMITS)
    assert [passage.passage_id for passage in found][:2] == ["docs/a.md", "docs/a.md#2"]


def test_a_passage_never_crosses_a_heading_and_names_the_path_to_it():
    found = cut_into(document(section("Hello."), section("Two euros.", heading="Rentals > Fees")), LIMITS)
    assert [(passage.title, passage.text) for passage in found] == [("Rentals", "Hello."), ("Rentals > Fees", "Two euros.")]
    (alone,) = cut_into(document(section("x.", heading="Fees")), LIMITS)
    assert alone.title == "Rentals > Fees"


def test_paragraphs_are_packed_as_long_as_they_fit():
    found = cut_into(document(section("One two three.", "Four five six.", "Seven eight.")), LIMITS)
    assert [passage.text for passage in found] == ["One two three.\n\nFour five six.\n\nSeven eight."]


def test_a_long_paragraph_is_cut_between_sentences_and_its_passages_overlap():
    text = "One two three. Four five six! Seven eight nine? Ten eleven twelve. Thirteen fourteen fifteen."
    first, second = cut_into(document(section(text)), LIMITS)
    assert first.text == "One two three. Four five six! Seven eight nine? Ten eleven twelve."
    assert second.text == "Ten eleven twelve. Thirteen fourteen fifteen."


def test_a_sentence_that_is_too_long_is_cut_between_words():
    found = cut_into(document(section(" ".join(f"w{number}" for number in range(50)))), LIMITS)
    assert len(found) > 2 and all(num_tokens(passage.text) <= 20 for passage in found)
    assert found[0].text.startswith("w0 w1 ") and found[-1].text.endswith("w49")


def test_text_without_spaces_is_cut_too():
    for text in ("".join(chr(0x4E00 + number) for number in range(50)), "".join(map(str, range(200)))):
        found = cut_into(document(section(text)), LIMITS)
        assert all(num_tokens(passage.text) <= 20 for passage in found)
        assert "".join(passage.text for passage in found).replace(" ", "") == text


def test_sentences_of_chinese_and_thai_keep_what_stands_between_them():
    chinese = "影片可以保留九天。逾期每天收费六角！真的吗？是的。请把影片放进任何火车站的绿色箱子里。"
    found = cut_into(document(section(chinese)), ChunkLimits(max_tokens=24, overlap_tokens=0))
    assert [passage.text for passage in found] == [
        "影片可以保留九天。逾期每天收费六角！真的吗？",
        "是的。请把影片放进任何火车站的绿色箱子里。",
    ]
    assert "".join(passage.text for passage in found) == chinese
    lines = "one line\nanother line"
    assert [passage.text for passage in cut_into(document(section(lines)), LIMITS)] == [lines]


def test_what_is_shown_is_as_it_was_written_and_what_is_searched_is_not():
    (passage,) = cut_into(document(section("Take 1½ cups, 10⁶ times！？"), title="Ｒｅｎｔａｌｓ"), LIMITS)
    assert (passage.title, passage.text) == ("Ｒｅｎｔａｌｓ", "Take 1½ cups, 10⁶ times！？")
    assert passage.search_text == "Rentals\nTake 1½ cups, 10⁶ times!?"
    assert "rentals" in passage.words.split() and "10⁶" in passage.words.split()


def test_what_a_page_repeats_word_for_word_is_indexed_once():
    assert len(cut_into(document(section("Share this page."), section("Share this page.")), LIMITS)) == 1


def test_a_document_without_text_has_no_passage():
    assert cut_into(document(), LIMITS) == []
    assert cut_into(document(section()), LIMITS) == []


@settings(deadline=None)
@given(
    paragraphs=st.lists(st.text(alphabet="ab .!日\n", max_size=120), max_size=5),
    limits=st.builds(ChunkLimits, max_tokens=st.integers(5, 30), overlap_tokens=st.integers(0, 4)),
)
def test_every_passage_fits_and_every_word_is_in_one(paragraphs, limits):
    cleaned = tuple(clean(paragraph) for paragraph in paragraphs)
    found = cut_into(document(section(*cleaned)), limits)
    assert all(0 < num_tokens(passage.text) <= limits.max_tokens for passage in found)
    text = " ".join(passage.text for passage in found)
    assert all(word in text for paragraph in cleaned for word in paragraph.split() if len(word) <= limits.max_tokens // 2)
    assert len({passage.passage_id for passage in found}) == len(found)


def test_the_hash_changes_with_the_content_and_with_the_limits():
    assert hash_of(b"a", LIMITS) == hash_of(b"a", LIMITS)
    assert len({hash_of(b"a", LIMITS), hash_of(b"b", LIMITS), hash_of(b"a", ChunkLimits(max_tokens=21, overlap_tokens=6))}) == 3
