"""No state can be made that cannot be written, whatever categories and ids come; and what is written is bounded."""

from __future__ import annotations

import pytest

from services.common.platform.errors import InvalidInput
from services.common.ranker.states import MAX_CATEGORIES, NO_OFFSET, GlobalState, Interaction, UserState
from tests.fuzz.ranker_states import READERS, SPEC, fuzz


def act(item_id: str = "i") -> Interaction:
    return Interaction("u", item_id, "rating", 4.0, 0)


def test_ten_times_more_categories_than_are_counted_keep_the_frequent_ones_and_can_be_packed() -> None:
    state = GlobalState()
    for number in range(MAX_CATEGORIES):
        state.apply(SPEC, act(), ("Drama", *(f"tag {10 * number + tag}" for tag in range(10))), number)
        if number % 4 == 0:
            state.apply(SPEC, act(), ("War",), NO_OFFSET)
    packed = state.to_bytes()
    assert MAX_CATEGORIES <= len(state.categories) <= MAX_CATEGORIES * 5 // 4
    assert len(packed) < 300_000
    assert GlobalState.from_bytes(packed) == state
    assert (state.categories["Drama"].acts, state.categories["War"].acts) == (MAX_CATEGORIES, MAX_CATEGORIES / 4)
    assert state.tally.acts == MAX_CATEGORIES * 5 / 4


def test_which_categories_go_does_not_depend_on_when_the_state_was_written() -> None:
    one, two = GlobalState(), GlobalState()
    for number in range(2 * MAX_CATEGORIES):
        for state in (one, two):
            state.apply(SPEC, act(), (f"tag {number % 5_500}", f"tag {number * 7 % 3_001}"), number)
        if number % 999 == 0:
            two = GlobalState.from_bytes(two.to_bytes())
    assert one.to_bytes() == two.to_bytes()


@pytest.mark.parametrize("size", [65_535, 65_536, 1_000_000])
@pytest.mark.parametrize("letter", ["x", "é", "語"])
def test_a_text_that_no_state_can_hold_is_refused_before_anything_changes(size: int, letter: str) -> None:
    text = letter * (size // len(letter.encode()))
    text += "x" * (size - len(text.encode()))
    for state, interaction, categories in (
        (UserState(), act(), (text,)),
        (UserState(), act(text), ()),
        (GlobalState(), act(), (text,)),
    ):
        before = state.to_bytes()
        if size > 65_535:
            with pytest.raises(InvalidInput, match=f"it has {size} bytes; an id or category in a state has at most 65535"):
                state.apply(SPEC, interaction, categories, 5)
            assert state.to_bytes() == before
        else:
            assert state.apply(SPEC, interaction, categories, 5)
            assert len(state.to_bytes()) > size


@pytest.mark.parametrize("reader", READERS)
def test_damaged_states_and_blocks_are_read_or_refused(reader: str) -> None:
    """A seeded sample of tests/fuzz/test_ranker_states.py."""
    assert fuzz(reader, 1_000, seed=1)["refused"] > 10
