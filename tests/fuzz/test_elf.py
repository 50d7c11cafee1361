"""100,000 damaged shared libraries: each is read, or refused by the one error that the reader promises."""

import random

import pytest

from tests.fuzz.elf import fuzz_elf

pytestmark = [pytest.mark.deep]


def test_a_damaged_library_is_read_or_refused() -> None:
    outcomes = fuzz_elf(100_000, random.Random(11))
    assert outcomes["read"] > 1_000 and outcomes["refused"] > 1_000, outcomes
