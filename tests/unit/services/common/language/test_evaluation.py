import copy

import pytest

from services.common.events.chat import Passage
from services.common.language.evaluation import HeldOut, Question, is_right, parse_evaluation
from services.common.platform.errors import InvalidInput

FIELDS = {
    "task_slice": [{"question": "How long may I keep it?", "accept": [["nine days", "9 days"]]}],
    "context_slice": [
        {"question": "From when is Heat?", "context": [{"title": "Heat", "text": "1995."}], "accept": [["1995"]], "reject": ["1983"]}
    ],
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("You may keep it for nine days.", True),
        ("NINE\n days!", True),
        ("9 days", True),
        ("29 days", False),
        ("Ninety-nine daysies", False),
        ("", False),
    ],
)
def test_wordings_are_found_as_whole_words_whatever_the_case_and_punctuation(answer, right):
    assert is_right(answer, [["nine days", "9 days"]]) is right


def test_every_group_must_be_met_by_one_of_its_wordings():
    accept = [["green box"], ["station", "railway"]]
    assert is_right("Into the green box at the station.", accept)
    assert not is_right("Into the green box.", accept)
    assert not is_right("At the station.", accept)


def test_an_answer_that_says_everything_is_wrong_where_something_is_rejected():
    assert is_right("Heat is from 1995.", [["1995"]], ["1983"])
    assert not is_right("1983 or 1995.", [["1995"]], ["1983"])


def test_a_file_becomes_both_slices():
    evaluation = parse_evaluation(FIELDS, where="helpdesk.yaml")
    assert evaluation.task_slice == (Question(question="How long may I keep it?", accept=(("nine days", "9 days"),)),)
    assert evaluation.context_slice == (
        Question(question="From when is Heat?", accept=(("1995",),), reject=("1983",), context=(Passage("Heat", "1995."),)),
    )


def changed(path: tuple, value) -> dict:
    fields = copy.deepcopy(FIELDS)
    place = fields
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (None, "the keys context_slice and task_slice"),
        (changed(("context_slice",), None), "the keys context_slice and task_slice"),
        (changed(("other_slice",), []), "general_slice, retrieve_slice, safety_slice if need be"),
        (changed(("safety_slice",), [{"question": "q"}]), r"safety_slice\[0\]: it must have accept or reject"),
        (changed(("general_slice",), [{"question": "q"}]), r"general_slice\[0\]: it must be an object with the keys accept, question"),
        (changed(("task_slice",), []), "task_slice: it must be a list of 1 to"),
        (changed(("task_slice", 0, "question"), ""), r"task_slice\[0\].question"),
        (changed(("task_slice", 0, "question"), 7), r"task_slice\[0\].question"),
        (changed(("task_slice", 0, "context"), []), r"task_slice\[0\]: it must be an object"),
        (changed(("task_slice", 0, "accept"), ["nine days"]), r"task_slice\[0\].accept\[0\]"),
        (changed(("task_slice", 0, "accept"), [["!?"]]), "would be found in every answer"),
        (changed(("task_slice", 0, "accept"), [[1995]]), "quote numbers"),
        (changed(("context_slice", 0, "context"), []), r"context_slice\[0\].context: it must be a list"),
        (changed(("context_slice", 0, "context", 0, "text"), None), r"context\[0\]: it must be an object"),
        # The router would refuse these in the middle of a gate.
        (changed(("task_slice", 0, "question"), "用" * 2_731), r"task_slice\[0\].question: it has 8193 bytes"),
        (changed(("context_slice", 0, "context", 0, "title"), "t" * 1_025), r"context\[0\].title: it has 1025 bytes"),
        (changed(("context_slice", 0, "context"), [{"title": "t", "text": "用" * 8_192}] * 11), "context: 270336 bytes of text"),
        (changed(("context_slice", 0, "context"), [{"title": "t", "text": "x"}] * 33), "list of 1 to 32 passages"),
        (changed(("context_slice", 0, "reject"), [[]]), r"context_slice\[0\].reject"),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(fields, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_evaluation(fields, where="helpdesk.yaml")
    assert "helpdesk.yaml" in str(caught.value)


def test_a_held_out_question_is_found_in_any_spelling():
    evaluation = parse_evaluation(FIELDS, where="x")
    held_out = HeldOut(evaluation)
    assert held_out.has("how long may i keep it")
    assert held_out.has(evaluation.context_slice[0].question.upper())
    assert not held_out.has("How long may I keep them?")


def test_questions_of_other_scripts_are_compared_by_their_words():
    asked = [{"question": "Сколько дней можно держать фильм?", "accept": [["девять дней"]]}]
    context = [{"question": "When?", "accept": [["1995"]], "context": [{"title": "Heat (1995)", "text": "x"}]}]
    evaluation = parse_evaluation({"task_slice": asked, "context_slice": context}, where="t.yaml")
    assert not HeldOut(evaluation).has("Где вернуть фильм?")
    assert HeldOut(evaluation).has("сколько дней можно держать фильм")
    assert is_right("Девять дней.", evaluation.task_slice[0].accept)
