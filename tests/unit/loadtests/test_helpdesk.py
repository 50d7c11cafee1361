from collections import Counter

import pytest
import yaml

from loadtests.demo import helpdesk
from loadtests.movielens import Film, load_films
from services.common.events.catalog import CatalogItem
from services.common.language.evaluation import HeldOut, parse_evaluation
from services.common.language.similar_questions import SimilarQuestions
from services.tuner.replay import replay_from_items, without_evaluated


@pytest.fixture(scope="module")
def films() -> dict[str, Film]:
    return load_films()


def test_the_help_desk_has_ten_facts_six_demonstrations_and_ten_paraphrases_of_each():
    desk = helpdesk.load()
    assert Counter(Counter(lesson.answer for lesson in desk.demonstrations).values()) == {6: 10}
    assert (len(desk.held_out), len(desk.judged)) == (30, 70)
    asked = SimilarQuestions()
    assert [one.question for one in (*desk.held_out, *desk.judged, *desk.demonstrations) if asked.find(one.question) is not None] == []


def test_each_demonstrated_answer_is_right_for_its_own_paraphrases_and_for_no_other_fact():
    desk = helpdesk.load()
    answers = list(dict.fromkeys(lesson.answer for lesson in desk.demonstrations))
    for number, asked in enumerate(desk.held_out):
        assert [answer for answer in answers if asked.is_right(answer)] == [answers[number // 3]] == [asked.answer], asked.question
    for number, asked in enumerate(desk.judged):
        assert [answer for answer in answers if asked.is_right(answer)] == [answers[number // 7]] == [asked.answer], asked.question


def test_a_paraphrase_that_is_also_a_demonstration_is_refused(tmp_path):
    path = tmp_path / "helpdesk.yaml"
    fact = {"answer": "a", "demonstrations": ["Hello! Why?"], "paraphrases": ["why?"], "accept": [["a"]]}
    path.write_text(yaml.safe_dump({"facts": [fact]}))
    with pytest.raises(ValueError, match="is a demonstration and held out as well"):
        helpdesk.load(path)


def test_the_evaluation_file_holds_both_slices_and_no_demonstration(tmp_path, films):
    path = tmp_path / "helpdesk.yaml"
    helpdesk.write_evaluation(path, films)
    evaluation = parse_evaluation(yaml.safe_load(path.read_text()), where="x")
    assert len(evaluation.task_slice) == 100
    assert len(evaluation.context_slice) == helpdesk.NUM_CONTEXT_QUESTIONS >= 40
    held_out = HeldOut(evaluation)
    assert not any(held_out.has(lesson.question) for lesson in helpdesk.load().demonstrations)
    assert evaluation.context_slice == tuple(helpdesk.as_questions(helpdesk.context_questions(films)))


def test_context_questions_are_answered_by_the_film_that_they_name_and_by_nothing_else_in_the_context(films):
    for asked in helpdesk.context_questions(films):
        right = [passage for passage in asked.context if asked.is_right(f"{passage.title} {passage.text}")]
        assert len(right) == 1, asked
        assert not asked.is_right(" ".join(f"{passage.title} {passage.text}" for passage in asked.context)) or len(asked.context) == 1


def test_what_is_replayed_shares_neither_film_nor_question_with_what_is_judged(films):
    asked = helpdesk.context_questions(films)
    evaluation = parse_evaluation(helpdesk.evaluation_of(helpdesk.load(), asked), where="x")
    items = [CatalogItem(item_id=film.item_id, title=film.title, categories=film.categories) for film in films.values()]
    replay = replay_from_items(without_evaluated(items, evaluation), count=200, seed=0)
    assert len(replay) == 200
    judged = {passage.title for one in asked for passage in one.context}
    assert not judged & {passage.title for one in replay for passage in one.passages}
    assert not {one.question for one in asked} & {one.question for one in replay}
