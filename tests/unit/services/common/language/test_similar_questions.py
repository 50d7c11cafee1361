import random

import pytest

from services.common.language.similar_questions import SimilarQuestions, grams_of, normalised

HELD_OUT = (
    "How many days can I hold on to a film that I rented?",
    "How long can I keep it?",
    "Wie lange darf ich einen Film behalten?",
    "您最多可以保留几天？",
    "どのくらい長く借りられますか",
    "ฉันเก็บหนังได้กี่วัน",
    "Сколько дней можно держать фильм?",
)


@pytest.mark.parametrize(
    "question",
    [
        "Hi! How many days can I hold on to a film that I rented?",
        "how many days can i hold onto a film that i rented",
        "Good morning, a question: How many days can I hold on to a film that I rented? Thank you very much.",
        "How many days can I hold on to a film that I rented??!",
        "How many days can I hold on to a film that I rentet?",
        "How many days can I hold on to a film that I really rented?",
        "Many days can I hold on to a film that I rented?",
        "HOW LONG CAN I KEEP IT",
        "Hi! How long can I keep it?",
        "Wie lange darf ich einen Film behalten, bitte?",
        "wie lange darf ich einen film behälten?",
        "您好！您最多可以保留几天？",
        "您最多可以 保留几天呀",
        "Ｈｉ，您最多可以保留几天？",
        "すみません、どのくらい長く借りられますか？",
        "ฉันเก็บหนังได้กี่วันคะ",
        "Здравствуйте! Сколько дней можно держать фильм?",
        "Somebody asked me long ago, and I did not know what to say to it at all: how long can I keep it",
    ],
)
def test_what_repeats_a_question_but_for_a_greeting_signs_or_a_letter_is_found(question):
    assert SimilarQuestions(HELD_OUT).find(question) is not None


@pytest.mark.parametrize(
    "question",
    [
        "When must a film that I rented come back?",
        "What is the longest time that I may keep a rented movie?",
        "How much does it cost to be late?",
        "Was kostet ein Film am Tag?",
        "退货要多少钱？",
        "我可以借几部电影？",
        "您最多可以保留几年？",
        "How long can they keep it?",
        "How many days can I hold on to a disc that I rented?",
        "How many days can I hold on to 5 films that I rented?",
        "料金はいくらですか",
        "Где вернуть фильм?",
        "?!",
        "",
        "it",
    ],
)
def test_another_question_or_one_in_other_words_is_not(question):
    assert SimilarQuestions(HELD_OUT).find(question) is None


def test_the_nearest_of_several_is_named():
    questions = SimilarQuestions(["Where is the green box?", "Where is the blue box?"])
    assert questions.find("Where is the blue box, please?") == 1
    assert len(questions) == 2


def test_all_held_out_questions_are_found_in_a_disguise_and_no_other_in_ten_times_as_many():
    rng = random.Random(1)
    words = [f"w{number}{rng.choice('aeiou')}x" for number in range(400)]
    asked = {" ".join(rng.sample(words, 8)) for _ in range(2_200)}
    held_out, others = sorted(asked)[:200], sorted(asked)[200:]
    questions = SimilarQuestions(held_out)
    assert all(questions.find(f"Hello! {one.upper()}...") == row for row, one in enumerate(held_out))
    assert [one for one in others if questions.find(one) is not None] == []


def test_words_and_n_grams_of_scripts_with_and_without_blanks():
    assert normalised("  Wie LANGE, Ｇrüße?! ") == "wie lange grusse"
    assert grams_of("ab") == {" ab", "ab "}
    assert grams_of("九天") == {"九天"}
    assert grams_of("ok 九天") == {" ok", "ok ", "九天"}
    assert grams_of("!?") == frozenset()


def test_questions_of_one_pattern_about_other_things_are_other_questions():
    pattern = "Could you please tell me in which year the film {} was made?"
    questions = SimilarQuestions(pattern.format(f"Number {number}") for number in range(0, 2_000, 2))
    assert [number for number in range(1, 2_000, 20) if questions.find(pattern.format(f"Number {number}")) is not None] == []
    assert questions.find(f"Hello! {pattern.format('Number 1000')}") == 500
    films = SimilarQuestions(pattern.format(name) for name in ("Heat", "Fargo", "Casablanca"))
    assert films.find(pattern.format("Alien")) is None
    assert films.find(pattern.format("Casablanka")) == 2
