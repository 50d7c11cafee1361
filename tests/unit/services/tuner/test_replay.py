import re

from services.common.events.catalog import CatalogItem
from services.common.events.chat import Passage
from services.common.language.evaluation import Evaluation, Question
from services.common.language.items import passage_of, spoken_title, year_of
from services.tuner.replay import replay_from_items, without_evaluated

ITEMS = [
    CatalogItem(item_id=str(i), title=f"Film {name}, The ({1960 + i})", categories=(("Drama", "Comedy", "War")[i % 3],))
    for i, name in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
]


def test_titles_are_spoken_with_the_article_in_front_and_without_the_year():
    assert spoken_title("Usual Suspects, The (1995)") == "The Usual Suspects"
    assert spoken_title("Seven (Se7en) (1995)") == "Seven (Se7en)"
    assert spoken_title("Heat") == "Heat"
    assert year_of("Seven (Se7en) (1995)") == "1995"
    assert year_of("Seven (Se7en)") == ""


def test_a_passage_is_worded_as_the_retriever_words_it():
    item = CatalogItem(item_id="1", title="Heat (1995)", categories=("Action", "Crime"), attributes={"run_time": "170 min.", "studio": "X"})
    assert passage_of(item) == Passage("Heat (1995)", "Categories: Action, Crime. Run time: 170 min. Studio: X.")
    assert passage_of(CatalogItem(item_id="2", title="Lone", categories=())) == Passage("Lone", "Lone.")


def test_every_answer_follows_from_exactly_the_given_passages():
    examples = replay_from_items(ITEMS, count=26, seed=1)
    assert len(examples) == 26
    assert len({example.question.split()[0] for example in examples}) > 3
    for example in examples:
        year = re.search(r"(from|in) ((19|20)\d\d)\?", example.question)
        category = re.search(r"(Drama|Comedy|War)", example.question)
        subjects = [p for p in example.passages if spoken_title(p.title) in example.answer]
        assert len(subjects) == 1, example
        assert 2 <= len(example.passages) <= 4
        if year:
            assert [p.title for p in example.passages if year[2] in p.title] == [subjects[0].title]
        elif category:
            assert [p.title for p in example.passages if category[1] in p.text] == [subjects[0].title]
        elif "is from" in example.answer:
            assert year_of(subjects[0].title) in example.answer
        else:
            assert subjects[0].text.removeprefix("Categories: ") in example.answer


def test_the_same_seed_gives_the_same_examples_whatever_the_order_of_the_items():
    assert replay_from_items(ITEMS, count=9, seed=1) == replay_from_items(ITEMS[::-1], count=9, seed=1)
    assert replay_from_items(ITEMS, count=9, seed=1) != replay_from_items(ITEMS, count=9, seed=2)


def test_a_poor_catalogue_gives_what_it_can():
    assert replay_from_items([], count=5, seed=0) == []
    assert replay_from_items([CatalogItem(item_id="1", title="Lone", categories=())], count=5, seed=0) == []
    only = replay_from_items([CatalogItem(item_id="1", title="Lone (1990)", categories=())], count=5, seed=0)
    assert [example.answer for example in only] == ["Lone is from 1990."]


def test_items_of_the_evaluation_are_left_out_company_included():
    context = (Passage(ITEMS[0].title, "x"), Passage(ITEMS[3].title, "x"))
    question = Question(question="?", accept=(("x",),), context=context)
    left = without_evaluated(ITEMS, Evaluation(task_slice=(question,), context_slice=(question,)))
    assert [item.item_id for item in left] == [item.item_id for item in ITEMS if item.item_id not in ("0", "3")]
