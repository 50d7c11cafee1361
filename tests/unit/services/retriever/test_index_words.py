"""Which index words passages and queries have; tests/integration/retriever/test_words_of_all_scripts.py searches with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from services.retriever.core.index_words import FORMAT, MAX_QUERY_WORDS, words_of_passage, words_of_query
from tests.processor_time import growth

TEXTS = [
    "Late fees are two euros; isn't it cheap? C++, .NET, AT&T, node.js, snake_case, l’acheteur, 1,995.50 and 10⁶.",
    "影片最多可以保留九天，逾期每天收费六角。Python 3.11も使えます。グリーンボックス。",
    "เก็บไว้ได้เก้าวัน 서울에서 दिन девять ٣ jane@example.com",
]


def test_who_changes_the_words_raises_the_format():
    """An index of before would be searched by other words than it holds. Then change FORMAT, and this digest."""
    words = "\n".join(words_of_passage("docs/a.md", "Who, The (1967) > Late fees", text) for text in TEXTS)
    assert (FORMAT, hashlib.sha256(words.encode()).hexdigest()[:16]) == (2, "79099ee102d80d65")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Late fees", "late fees"),
        ("C++", "c++ c"),
        ("node.js", "node.js node js"),
        ("九天", "九天"),
        ("猫", "猫"),
        ("バス", "バス"),
        ("グリーン", "グリーン グリ リー ーン"),
        ("保留 nine 天", "保留 nine 天"),
        ("서울", "서울"),
        ("isn't", "isnt"),
        ("The Who", "the who"),
        ("what is the fee for a film that comes back late", "fee film comes back late"),
        ("映画は何日ですか", "映画 画は 日で"),
        ("to be or not to be", "to be or not"),
        ("是不是可以保留九天", "可以 以保 保留 留九 九天"),
        ("你是谁", "你是 是谁"),
        ("", ""),
        ("?!。", ""),
    ],
)
def test_a_query_asks_for_words_pairs_of_characters_and_names_with_their_parts(query, words):
    assert [word for word in words_of_query(query).split() if not word.startswith("=")] == words.split()


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("The Who", "the who"),
        ("Usual Suspects, The (1995)", "The Usual Suspects"),
        ("Usual Suspects, The (1995)", "usual suspects, the (1995)"),
        ("Returns > Late fees", "LATE FEES"),
        ("归还地点", "归还地点"),
        ("It", "it"),
    ],
)
def test_a_title_is_one_word_more_in_every_form_that_is_said(title, query):
    whole = [word for word in words_of_query(query).split() if word.startswith("=")]
    assert whole and whole[0] in words_of_passage("a", title, "text").split()


def test_an_id_and_a_files_name_are_found_and_a_paragraph_is_no_title():
    words = words_of_passage("docs/returns.md", "Returns", "text").split()
    assert words_of_query("docs/returns.md").split()[-1] in words
    assert words_of_query("returns.md").split()[-1] in words
    assert not any(word.startswith("=") for word in words_of_query("word " * 30).split())


def test_a_query_asks_for_a_bounded_number_of_words_each_once():
    assert len(words_of_query(" ".join(f"w{number}" for number in range(3_000))).split()) == MAX_QUERY_WORDS == 256
    assert words_of_query("fee fee fee fee").split()[0] == "fee" and words_of_query("fee fee fee fee").split().count("fee") == 1


def growth_of(part: str) -> float:
    """How many times longer a text takes that is four times as long: about 4 where time grows with length, 16 with its square."""

    def work(length: int) -> Callable[[], object]:
        text = part * (length // len(part))
        return lambda: words_of_passage("a", "t", text)

    return growth(work(5_000), work(20_000))


@pytest.mark.parametrize("part", ["word ", "九", "バ", "เก้า", "a.", "1,", "c++", "'", "n't", "가"])
def test_a_long_text_takes_no_long_time(part):
    assert growth_of(part) < 9
