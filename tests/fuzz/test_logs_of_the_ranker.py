"""More than a hundred thousand damaged inputs for each parser of what lies in the ranker's topics: read, or refused with its one error."""

from __future__ import annotations

import pytest

from tests.unit.services.common.events.test_damaged_envelopes import read_damaged_envelopes
from tests.unit.services.common.ranker.test_delta import read_damaged_bodies, read_damaged_records
from tests.unit.services.recommender.updater.test_base_artifact import read_damaged_pointers

pytestmark = [pytest.mark.deep]


def test_damaged_bodies_of_deltas() -> None:
    assert 50_000 < read_damaged_bodies(150_000, seed=1) < 150_000


def test_damaged_records_of_deltas() -> None:
    assert 50_000 < read_damaged_records(150_000, seed=2) < 150_000


def test_damaged_pointers_to_bases() -> None:
    assert 0 < read_damaged_pointers(150_000, seed=3) < 50_000


def test_damaged_envelopes() -> None:
    assert 50_000 < read_damaged_envelopes(150_000, seed=4) < 150_000
