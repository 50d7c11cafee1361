"""How often the publish gate is wrong about quality, over 400 simulated hours: what services/trainer/quality_gate.py states."""

from __future__ import annotations

import pytest

from tests.quality_streams import HARMS, false_alarms, power

pytestmark = pytest.mark.deep


def test_the_rates_are_those_that_the_gate_states() -> None:
    hours = 400
    # Two tasks: so many alarms in these hours of one task are 1 % an hour of a mesh.
    assert false_alarms(hours) <= hours * 0.01 / 2
    for name in ("half of the items gets another item's score", "10 % of the labels are turned round", "logits are doubled"):
        found = power(HARMS[name], 20)
        assert sum(number is not None and number <= 4 for number in found) >= 0.9 * len(found), name
