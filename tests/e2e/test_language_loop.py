"""The language half, as `make demo` runs it: grounded answers, a tune from demonstrations, and a roll back."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(1600)]


@pytest.fixture(scope="module")
def llm(demo):
    return demo.report["llm"]


def test_answers_about_the_catalogue_stream_from_retrieved_passages(llm):
    for asked in llm["grounded"]:
        assert asked["answer"] and asked["from"] and asked["degraded_reason"] == ""
    assert any("Toy Story" in title for title in llm["grounded"][0]["from"])


def test_no_call_of_the_language_half_fails(llm):
    assert llm["failed_rpcs"] == 0


def test_held_out_paraphrases_are_learned_from_the_demonstrations(llm):
    assert llm["before"]["held_out"] <= 0.2
    assert llm["after"]["held_out"] >= 0.8
    assert llm["after"]["model_version"] == llm["tune"]["adapter"]


def test_answers_from_given_context_are_no_worse_than_before(llm):
    assert llm["after"]["from_context"] >= llm["before"]["from_context"]


def test_a_roll_back_is_live_within_five_seconds(llm):
    assert llm["rollback_s"]["back"] <= 5.0


def test_a_demonstration_is_an_example_within_seconds(llm):
    assert llm["feedback_to_example_s"] <= 15.0
