"""100,000 times, one to three bits of a replica's mapped tables change by themselves: never a wrong row once they have been looked over."""

import pytest

from tests.fuzz.mapped_tables import fuzz_opening, fuzz_running, small_model

pytestmark = [pytest.mark.deep]


@pytest.mark.parametrize("seed", range(2))
def test_damage_under_a_running_writer_is_found_by_one_check_or_on_write_or_does_no_harm(seed: int) -> None:
    with small_model() as model:
        outcomes = fuzz_running(model, 20_000, seed=300 + seed)
    assert outcomes["found"] > 10_000 and outcomes["harmless"] > 1_000 and outcomes["harmless and written over"] > 500, outcomes


@pytest.mark.parametrize("seed", range(2))
def test_damaged_tables_are_neither_served_nor_gone_on_from_when_they_are_opened(seed: int) -> None:
    with small_model() as model:
        outcomes = fuzz_opening(model, 30_000, seed=400 + seed)
    assert outcomes["reader refused"] > 10_000 and outcomes["reader opened"] > 1_000, outcomes
    assert outcomes["writer will build"] == outcomes["reader refused"], "what one finds the other finds"
