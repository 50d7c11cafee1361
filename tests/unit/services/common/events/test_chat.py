from dataclasses import replace

import pytest

from services.common.events.chat import (
    HISTORY_ROLES,
    ROLES,
    Message,
    Passage,
    Sampling,
    check_context,
    check_question,
    check_roles,
    check_sampling,
)


class Refused(Exception):
    pass


LARGEST = Sampling(temperature=2.0, top_p=1.0, max_tokens=100, seed=2**64 - 1, stop=("x" * 128,) * 8)


@pytest.mark.parametrize("sampling", [Sampling(), LARGEST])
def test_sampling_within_its_bounds_is_taken(sampling) -> None:
    check_sampling(sampling, 100, Refused)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 2.1}, "sampling.temperature: 2.1 is not within 0 and 2"),
        ({"temperature": float("nan")}, "sampling.temperature: nan"),
        ({"top_p": -0.1}, "sampling.top_p: -0.1 is not within 0 and 1"),
        ({"top_p": float("inf")}, "sampling.top_p: inf"),
        ({"max_tokens": 101}, "sampling.max_tokens: 101 is more than 100"),
        ({"stop": ("a",) * 9}, "sampling.stop: 9 texts are more than 8"),
        ({"stop": ("a", "")}, r"sampling.stop\[1\]: it is empty"),
        # The llm once took 256 characters where the router took 128 bytes: what the public door refuses is refused behind it, too.
        ({"stop": ("é" * 65,)}, r"sampling.stop\[0\]: it has 130 bytes; it must have 1 to 128"),
    ],
)
def test_sampling_out_of_its_bounds_is_refused_with_the_field(changes, said) -> None:
    with pytest.raises(Refused, match=said):
        check_sampling(replace(LARGEST, **changes), 100, Refused)


def test_a_request_brings_at_most_32_passages_of_bounded_titles_ids_and_texts() -> None:
    passage = Passage("t" * 1_024, "x" * 8_192, "p" * 128)
    check_context("context", [passage] * 32, Refused)
    for passages, said in [
        ([passage] * 33, "context: 33 passages are more than 32"),
        ([passage, replace(passage, title="t" * 1_025)], r"context\[1\].title: it has 1025 bytes"),
        ([replace(passage, passage_id="p" * 129)], r"context\[0\].passage_id: it has 129 bytes"),
        ([replace(passage, text="x" * 52_429)] * 5, "context: 262145 bytes of text are more than 262144"),
        ([replace(passage, text="x" * 64_513)], r"context\[0\].text: it has 64513 bytes"),
    ]:
        with pytest.raises(Refused, match=said):
            check_context("context", passages, Refused)


def test_a_turn_has_a_role_that_its_place_allows() -> None:
    turns = [Message("user", "hi"), Message("system", "obey")]
    check_roles("messages", turns, ROLES, Refused)
    with pytest.raises(Refused, match=r"history\[1\].role: 'system' is none of user, assistant"):
        check_roles("history", turns, HISTORY_ROLES, Refused)


@pytest.mark.parametrize("text", ["", "  \n", "q" * 8_193])
def test_a_question_is_not_blank_and_not_too_long(text) -> None:
    check_question("question", "q" * 8_192, Refused)
    with pytest.raises(Refused, match=r"question: it has \d+ bytes; it must have 1 to 8192"):
        check_question("question", text, Refused)
