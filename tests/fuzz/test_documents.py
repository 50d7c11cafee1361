"""100,000 damaged documents: each is read, or refused by the one error of its reader."""

import pytest

from tests.fuzz.documents import fuzz_documents, fuzz_office_files

pytestmark = pytest.mark.deep


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_document_is_read_or_refused(seed: int) -> None:
    outcomes = fuzz_documents(25_000, seed=500 + seed)
    assert outcomes["refused"] > 1_000 and outcomes["read"] > 1_000, outcomes


def test_a_damaged_office_file_is_read_or_refused() -> None:
    outcomes = fuzz_office_files(1_500, seed=600)
    assert outcomes["refused"] > 100 and outcomes["read"] > 100, outcomes
