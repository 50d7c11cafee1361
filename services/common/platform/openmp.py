"""How threads of OpenMP (torch's, vLLM's) wait for each other. Call it before torch is imported; child processes inherit it."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_SPINS = "1000"


def spin_shortly(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for each other turn 1,000 times, about 10 µs, before they sleep; what the operator has set stays.

    Libgomp's own 300,000 turns take from the processes beside them, and on a full machine from each other, what they wait for: a torch
    product on two threads then takes more than ten times as long (loadtests/bench_openmp.py). None at all (OMP_WAIT_POLICY=PASSIVE) makes
    every wait a system call: a token of the language model takes 28 ms instead of 21. GOMP_SPINCOUNT goes before OMP_WAIT_POLICY, which
    only chooses its default, so it is not set where the operator has chosen a policy.

    Source: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", _SPINS)
