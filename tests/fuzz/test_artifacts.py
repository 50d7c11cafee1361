"""100,000 damaged checkpoints and as many bases: each is read, or refused by one of the errors that its reader promises."""

import pytest

from tests.fuzz.artifacts import fuzz_bases, fuzz_checkpoints

pytestmark = [pytest.mark.deep, pytest.mark.filterwarnings("ignore")]  # NumPy and the tokenizer warn of what is damaged


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_read_or_refused_and_never_ends_the_trainer_in_a_traceback(seed: int) -> None:
    outcomes = fuzz_checkpoints(25_000, seed=100 + seed)
    assert outcomes["ConfigurationError"] > 1_000 and outcomes["CorruptArtifact"] > 1_000 and outcomes["read"] > 500, outcomes


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_base_is_read_or_refused_and_what_is_read_can_be_built(seed: int) -> None:
    outcomes = fuzz_bases(25_000, seed=200 + seed)
    assert outcomes["CorruptArtifact"] > 1_000 and outcomes["read"] > 500, outcomes
