import pytest

from services.common.events.feedback_kinds import LLM_KINDS, MAX_TEXT_BYTES, fault_of, is_about_answer


def test_only_the_four_kinds_without_an_item_are_about_answers():
    assert {kind for kind in (*LLM_KINDS, "rating", "") if is_about_answer(kind, "")} == {"boolean", "score", "comment", "demonstration"}
    assert not any(is_about_answer(kind, "item") for kind in LLM_KINDS)


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
