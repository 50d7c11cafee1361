"""From a network's logits to probabilities, in the precision that is faster on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from services.common.ranker.inputs import RankerInputs
from services.common.ranker.networks.interface import Float32Array, RankerNetwork, Rows

Precision = Literal["fp32", "bf16"]

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Items of a request, from a short list to the most that the recommender takes by default.
_MEASURED_SIZES = (20, 100, 500)
_MEASURED_RUNS = 15
_PLAINLY_FASTER = 1.2


def score(network: RankerNetwork, inputs: RankerInputs, rows: Rows, *, precision: Precision = "fp32") -> Float32Array:
    """Return float32 [B, T]: calibrated probabilities.

    Args:
        precision: of the matrix products; the sums of dot product and biases, which decide between close items, are fp32 in any case.
    """
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        scores_BT: Float32Array = torch.sigmoid(network(inputs, rows).float()).numpy()
    return scores_BT


def has_bf16() -> bool:
    """Say whether this CPU multiplies bf16 itself; elsewhere bf16 is emulated, and always slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def faster_precision(run: Callable[[Precision, int], object], clock: Callable[[], float]) -> Precision:
    """Return the precision to score in on this machine: bf16 only if it is plainly faster at every size of a request.

    Whether a CPU has instructions for bf16 does not tell: the network's products are small, and casting may cost more than they save.
    Each size is run in both precisions in turn, and the shortest times are compared, which another process on the same cores disturbs
    least. With times that are up to ten times as long at random, bf16 was never chosen in 2,000 draws in which it was equally fast, and
    in 99 % of those in which it took half the time (tests/unit/services/common/ranker/networks/test_scoring.py).

    Args:
        run: scores so many items in a precision.
        clock: seconds.
    """
    for num_items in _MEASURED_SIZES:
        shortest = dict.fromkeys(("fp32", "bf16"), math.inf)
        for _ in range(_MEASURED_RUNS):
            for precision in _PRECISIONS:
                started = clock()
                run(precision, num_items)
                shortest[precision] = min(shortest[precision], clock() - started)
        if shortest["bf16"] * _PLAINLY_FASTER > shortest["fp32"]:
            return "fp32"
    return "bf16"
