"""What is shown stays as it is written; what is searched has one form; sentences end as their script ends them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.retriever.core.text import clean, num_tokens, paragraphs_of, pieces_of, searchable, sentences_of
from tests.processor_time import growth


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("  a \t b\u00a0\u3000c  ", "a b c"),
        ("zero\u200bwidth\u00ad and \ufeffmarks\x07", "zerowidth and marks"),
        ("a\n\n\n \t\n\nb", "a\n\nb"),
        ("\n\n", ""),
        ("Käse 日本", "Käse 日本"),
        ("Ka\u0308se", "Käse"),
        ("Persian می\u200cخواهم and 👩\u200d👩\u200d👧", "Persian می\u200cخواهم and 👩\u200d👩\u200d👧"),
    ],
)
def test_text_is_cleaned(raw, cleaned):
    assert clean(raw) == cleaned


@settings(deadline=None)
@given(st.text(max_size=200))
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)


def test_blank_lines_part_paragraphs():
    assert paragraphs_of("one\nstill one\n\n\ntwo\n \n") == ("one\nstill one", "two")


@pytest.mark.parametrize("text", ["1½ cups", "10⁶ times", "m² and H₂O", "真的吗！？", "ﬁle Ａ", "① first", "5 ㎏", "Ⅳ.", "ｶﾀｶﾅ", "¼″"])
def test_what_is_shown_keeps_its_meaning(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "searched"),
    [
        ("ﬁle Ａ", "file A"),
        ("！？", "!?"),
        ("1½ cups", "1½ cups"),
        ("10⁶", "10⁶"),
        ("ｶﾞﾗｽ", "ガラス"),
        ("٣ ๓ ３", "3 3 3"),
        ("l’été", "l'été"),
    ],
)
def test_what_is_searched_has_one_form_of_each_character(text, searched):
    assert searchable(text) == searched


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("One. Two! Three? “Four.” Five", ["One.", "Two!", "Three?", "“Four.”", "Five"]),
        ("It costs 1.50 at example.com today.", ["It costs 1.50 at example.com today."]),
        ("可以。不行！真的吗？", ["可以。", "不行！", "真的吗？"]),
        ("什么！？“好。”他说。", ["什么！？", "“好。”", "他说。"]),
        ("はい。「いいえ。」と言った。本当？！", ["はい。", "「いいえ。」", "と言った。", "本当？！"]),
        ("ได้เก้าวัน คิดวันละหกบาท", ["ได้เก้าวัน", "คิดวันละหกบาท"]),
        ("ใช้ USB 3 ได้", ["ใช้ USB 3 ได้"]),
        ("नौ दिन। फिर शुल्क।", ["नौ दिन।", "फिर शुल्क।"]),
        ("تسعة أيام؟ نعم.", ["تسعة أيام؟", "نعم."]),
        ("one line\nanother line", ["one line", "another line"]),
        ("中文。English here. 又是中文。", ["中文。", "English here.", "又是中文。"]),
    ],
)
def test_a_sentence_ends_where_its_script_ends_it(paragraph, sentences):
    assert [sentence for _, sentence in sentences_of(paragraph)] == sentences


_MIXED = st.text(alphabet="ab .!?\n。！」”日本กเ็่ा。", max_size=80)


@settings(deadline=None)
@given(_MIXED)
def test_sentences_with_what_parts_them_are_the_paragraph(text):
    paragraph = clean(text).replace("\n\n", "\n")
    assert "".join(separator + sentence for separator, sentence in sentences_of(paragraph)) == paragraph


@settings(deadline=None)
@given(_MIXED, st.integers(5, 30))
def test_pieces_are_the_sentence_and_fit(text, max_tokens):
    sentence = " ".join(clean(text).split())
    pieces = list(pieces_of(sentence, max_tokens))
    assert "".join(separator + piece for separator, piece in pieces) == sentence
    assert all(num_tokens(piece) <= max_tokens for _, piece in pieces)


def test_a_vowel_or_tone_mark_keeps_its_consonant():
    text = "เก็บภาพยนตร์ไว้ได้เก้าวันนับจากวันที่เช่า" * 3
    pieces = [piece for _, piece in pieces_of(text, 20)]
    assert "".join(pieces) == text and len(pieces) > 3
    assert not any(unicodedata.category(piece[0]).startswith("M") for piece in pieces)


def growth_of(part: str) -> float:
    """How many times longer a text takes that is four times as long: about 4 where time grows with length, 16 with its square."""

    def work(length: int) -> Callable[[], object]:
        text = part * (length // len(part))
        return lambda: [list(pieces_of(sentence, 20)) for _, sentence in sentences_of(clean(text))]

    return growth(work(20_000), work(80_000))


@pytest.mark.parametrize("part", ["One. ", ".", '..."', "\n", " \n", "九。", "九", "！", "，", "เก้า ", "เ้", "a" * 50, "।", "… "])
def test_a_long_text_takes_no_long_time(part):
    assert growth_of(part) < 9


def test_tokens_are_estimated_near_to_wordpiece():
    assert num_tokens("Films go back within seven days.") == 7
    assert num_tokens("internationalisation") == 4
    assert num_tokens("日本語") == 3 and num_tokens("") == 0
