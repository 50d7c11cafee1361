"""What a health probe reads from a port of this machine, where anything may answer."""

import pytest

from tests.contract.test_probes import read_damaged

pytestmark = [pytest.mark.deep]


def test_a_hundred_thousand_damaged_answers_of_a_health_service_are_refused_or_waited_for() -> None:
    assert read_damaged(100_000, seed=2) > 10_000
