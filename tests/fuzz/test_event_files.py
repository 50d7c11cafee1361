"""100,000 damaged columns and as many files of events: each is read within its contract, or refused by the one error of the reader."""

import pytest

from tests.fuzz.event_files import fuzz_columns, fuzz_files

pytestmark = [pytest.mark.deep]


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_column_is_read_within_its_contract_or_refused(seed: int) -> None:
    outcomes = fuzz_columns(25_000, seed=300 + seed)
    assert outcomes["refused"] > 10_000 and outcomes["read"] > 10_000, outcomes


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_text_file_is_read_or_refused_with_its_name(seed: int) -> None:
    outcomes = fuzz_files(25_000, seed=400 + seed)
    assert outcomes["refused"] > 5_000 and outcomes["read"] > 500, outcomes
