import pytest

from loadtests.demo import helpdesk
from services.common.events.catalog import CatalogItem
from services.common.language.items import passage_of
from services.tuner.replay import replay_from_items
from services.tuner.replay_words import language_of, wordings_of

GERMAN = ["Wie lange darf ich einen Film behalten?", "Sie dürfen ihn neun Tage behalten.", "Was kostet das?"]
CHINESE = ["最多可以保留几天？", "您最多可以保留九天。", "Blu-ray怎么退？"]
THINGS = [
    CatalogItem(item_id=str(number), title=f"Gerät {number}", categories=(("Haus", "Garten")[number % 2],), attributes={"farbe": farbe})
    for number, farbe in enumerate(("rot", "blau", "grün", "gelb") * 5)
]


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        ([lesson.question for lesson in helpdesk.load().demonstrations], "en"),
        (GERMAN, "de"),
        (["Combien de temps puis-je garder un film ?", "Vous pouvez le garder neuf jours.", "Où est la gare ?"], "fr"),
        (["¿Cuánto tiempo puedo tener una película?", "Usted puede tenerla nueve días.", "¿Dónde la devuelvo?"], "es"),
        (CHINESE, "zh"),
        (["どのくらい借りられますか", "最長九日間です。"], "ja"),
        (["Сколько дней можно держать фильм?"], "other"),
        (["ฉันเก็บหนังได้กี่วัน"], "other"),
        (["얼마나 오래 빌릴 수 있나요?"], "other"),
        (["123", "?"], "other"),
        ([], "other"),
        ([*CHINESE, "How long may I keep a film?"], "zh"),
    ],
)
def test_the_language_is_that_of_most_texts(texts, language):
    assert language_of(texts) == language_of(texts[::-1]) == language


def test_another_catalogue_is_asked_about_in_its_own_words_and_not_in_film_talk():
    examples = replay_from_items(THINGS, count=20, seed=1, language="de")
    assert len(examples) == 20
    for example in examples:
        text = f"{example.question} {example.answer}"
        assert not any(word in text.casefold() for word in ("genre", "which", "film", "title", "come out"))
        read = " ".join(f"{passage.title} {passage.text}" for passage in example.passages)
        said = example.answer.removesuffix(".").split(": ")
        assert all(part in read for part in said), example
    assert any("farbe" in example.question for example in examples)
    assert any("Kategorie" in example.question for example in examples)


def test_chinese_questions_have_chinese_words_and_answers_that_are_read():
    items = [
        CatalogItem(item_id=str(number), title=f"商品{number}", categories=("家电", "厨房"), attributes={"颜色": colour})
        for number, colour in enumerate("红蓝绿黄" * 5)
    ]
    examples = replay_from_items(items, count=20, seed=1, language=language_of(CHINESE))
    assert len(examples) == 20
    assert all(example.question.endswith(("？", "。")) for example in examples)
    assert all(language_of([example.question]) == "zh" for example in examples)
    assert {"商品3：家电、厨房。", "商品3：黄。", "商品3。"} & {example.answer for example in examples}


def test_a_language_without_wordings_is_asked_without_any():
    examples = replay_from_items(THINGS, count=20, seed=1, language="other")
    assert {example.question.rstrip("?").split(": ")[-1] for example in examples} >= {"farbe"}
    assert wordings_of("xx", of_works=True) == wordings_of("other", of_works=False)


def test_items_with_attributes_alone_are_asked_about_and_long_texts_are_not():
    items = [CatalogItem(item_id=str(number), title=f"Thing {number}", attributes={"colour": "red"}) for number in range(4)]
    items += [CatalogItem(item_id="t", title="Told", attributes={"about": "long " * 100})]
    examples = replay_from_items(items, count=10, seed=1)
    assert len(examples) == 4
    assert all("red" in example.question + example.answer and "long" not in example.question for example in examples)
    assert passage_of(items[0]).text == "Colour: red."


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "zh", "ja", "other"])
def test_every_wording_can_be_filled_and_braces_of_a_title_stay(language):
    for of_works in (True, False):
        words = wordings_of(language, of_works=of_works)
        questions = (words.categories, words.year, words.attribute, words.which_category, words.which_year, words.which_attribute)
        for wording in (*(one for each in questions for one in each), words.has, words.is_from, words.in_category, words.which):
            assert "{" not in wording.format(name="a", value="b", label="c")
    item = CatalogItem(item_id="1", title="A {name} {0}", categories=("x",))
    assert all("A {name} {0}" in one.answer for one in replay_from_items([item], count=1, seed=0, language=language))
