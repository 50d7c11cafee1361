"""Limits of waits that fit the machine: `timeout_s=seconds(60)` is a minute where the reference number was taken, longer on a slower one.

A limit only bounds how long a failure takes: a test that passes never waits for it, and no verdict follows from it. The factor is measured
once per run (tests/speed.py) and handed to every process in TUNEMESH_TEST_SPEED_FACTOR. Imports in both environments.
"""

from __future__ import annotations

import os

SPEED_FACTOR = "TUNEMESH_TEST_SPEED_FACTOR"


def speed_factor() -> float:
    """How many times slower than the reference this machine is, never below 1; 1 where nothing has been measured.

    Raises:
        ValueError: TUNEMESH_TEST_SPEED_FACTOR is not a number of 1 or more.
    """
    text = os.environ.get(SPEED_FACTOR, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1.0 <= factor < float("inf"):
        raise ValueError(f"{SPEED_FACTOR}={text}: it must be a number of 1 or more (unset it to have it measured)")
    return factor


def seconds(limit_s: float) -> float:
    """`limit_s` seconds of the reference machine, as seconds of this one."""
    return limit_s * speed_factor()
