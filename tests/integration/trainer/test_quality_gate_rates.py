"""How often the publish gate is wrong about quality, in 80 simulated hours of samples; services/trainer/quality_gate.py has the rates."""

from __future__ import annotations

import pytest

from tests.quality_streams import CLEAN, HARMS, false_alarms, power

pytestmark = pytest.mark.deep


@pytest.mark.parametrize("happening", CLEAN)
def test_no_clean_hour_is_refused(happening: str) -> None:
    # 0 of the 80 hours of all four: below 4 % an hour, with 95 % confidence. `python tests/quality_streams.py` looks at more.
    assert false_alarms(CLEAN[happening], 20) == 0


def test_what_is_plainly_broken_is_refused_soon() -> None:
    names = ("half of the items gets another item's score", "10 % of the labels are turned round", "logits are four times as large")
    for name, times in power({name: HARMS[name] for name in names}, 20, 240).items():
        assert len(times) == 20
        assert sum(seconds is not None for seconds in times) >= 18, (name, times)
