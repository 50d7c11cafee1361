import pytest

from services.common.events.feedback_kinds import ANSWER_KINDS, ITEM_KINDS, MAX_TEXT_BYTES, fault_of, is_about_answer, opinion_of


def test_a_feedback_without_an_item_of_a_kind_in_the_table_is_about_an_answer():
    assert {"boolean", "score", "comment", "demonstration"} <= set(ANSWER_KINDS)
    assert all(is_about_answer(kind, "") for kind in ANSWER_KINDS)
    assert not any(is_about_answer(kind, "item") for kind in ANSWER_KINDS)
    assert not any(is_about_answer(kind, "") for kind in ("rating", ""))


def test_every_row_has_a_name_and_a_metric_of_its_own():
    """Two rows of one name would hide one of them, two of one metric would overwrite it."""
    rows = [*ANSWER_KINDS.values(), *ITEM_KINDS.values()]
    assert [kind.name for kind in rows] == [*ANSWER_KINDS, *ITEM_KINDS]
    assert len({kind.name for kind in rows}) == len({kind.metric for kind in rows}) == len(rows)


@pytest.mark.parametrize(
    ("kind", "value", "opinion"), [("boolean", 1.0, 1.0), ("boolean", 0.5, 0.0), ("score", 0.25, 0.25), ("comment", 1.0, None)]
)
def test_the_opinion_is_that_of_the_kinds_value(kind, value, opinion):
    assert opinion_of(kind, value) == opinion


@pytest.mark.parametrize(
    ("kind", "value", "text", "field"),
    [
        ("boolean", 1.0, "", None),
        ("boolean", 0.5, "", "value"),
        ("boolean", 1.0, "x", "text"),
        ("score", 0.0, "", None),
        ("score", -0.1, "", "value"),
        ("comment", 0.0, "x", None),
        ("comment", 0.0, "", "text"),
        ("demonstration", 0.0, "x" * MAX_TEXT_BYTES, None),
        ("demonstration", 0.0, "x" * (MAX_TEXT_BYTES + 1), "text"),
    ],
)
def test_each_kind_says_which_of_its_fields_is_wrong(kind, value, text, field):
    fault = fault_of(kind, value, text)
    assert (fault[0] if fault else None) == field
