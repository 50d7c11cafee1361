"""100,000 damaged inputs for every reader of feature states and exposure blocks: read, or refused as CorruptArtifact."""

import pytest

from tests.fuzz.ranker_states import READERS, fuzz

pytestmark = [pytest.mark.deep, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_state_or_block_is_read_or_refused(reader: str) -> None:
    outcomes = fuzz(reader, 100_000, seed=7)
    assert outcomes["refused"] > 1_000, outcomes
