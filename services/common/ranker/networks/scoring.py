"""From a network's logits to probabilities, in the way and the precision that are fastest on this machine.

Shapes: N items, L history, D row dimension, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np
import torch

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.inputs import RankerInputs, assemble
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.interface import Float32Array, RankerNetwork, Rows
from services.common.ranker.networks.written_out import WrittenOut, is_written_out
from services.common.ranker.pooling import Pooled

Precision = Literal["fp32", "bf16"]

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Items of a request, from a short list to the most that the recommender takes by default.
_MEASURED_SIZES = (20, 100, 500)
_MEASURED_RUNS = 15
_PLAINLY_FASTER = 1.2


class Scoring(Protocol):
    """Scores the items of one user at a time, with the weights that were loaded last. Not thread-safe."""

    def load(self, tensors: Mapping[str, Float32Array]) -> None:
        """Replace the weights by what `RankerNetwork.state` returned.

        Raises:
            CorruptArtifact: a name or shape is not this network's; nothing was replaced.
        """

    def score(
        self, features: Features, user_D: Float32Array, items_ND: Float32Array, history_LD: Float32Array, pooled: Pooled | None = None
    ) -> Float32Array:
        """Return probabilities, float32 [N, T].

        Args:
            features: of the user and of the N items.
            user_D, items_ND, history_LD: float32 rows, C-contiguous; of the history as many as `features` has entries, at most the spec's.
            pooled: the rows of the keys that `features` has, of one user and N items; None when the spec has no keyed features.
        """


def scoring_of(spec: FeatureSpec, network: RankerNetwork) -> Scoring:
    """Return the fastest way there is to score with this network."""
    if isinstance(network, DcnDin) and is_written_out(network):
        return WrittenOut(network, len(spec.user_inputs), spec.history.length)
    return ByTorch(spec, network)


class ByTorch:
    """Any network, by torch's modules.

    Attributes:
        precision: of the matrix products; fp32 until it is set.
    """

    def __init__(self, spec: FeatureSpec, network: RankerNetwork) -> None:
        """Take the network over."""
        self._spec, self._network = spec, network.eval()
        self.precision: Precision = "fp32"

    def load(self, tensors: Mapping[str, Float32Array]) -> None:
        """Replace the weights. Errors: see `Scoring`."""
        self._network.load(tensors)

    def score(
        self, features: Features, user_D: Float32Array, items_ND: Float32Array, history_LD: Float32Array, pooled: Pooled | None = None
    ) -> Float32Array:
        """Score as `Scoring` says."""
        inputs = assemble(self._spec, [(features, np.zeros(len(items_ND), np.int64))])
        padded_LD = np.zeros((self._spec.history.length, items_ND.shape[1]), np.float32)
        padded_LD[: len(history_LD)] = history_LD
        rows = Rows(torch.from_numpy(user_D).unsqueeze(0), torch.from_numpy(items_ND), torch.from_numpy(padded_LD).unsqueeze(0))
        return score(self._network, inputs, rows.with_pooled(pooled), precision=self.precision)


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
