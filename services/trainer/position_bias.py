"""How much less an item is answered because it stands further behind: learned beside the network, and left out when items are ranked.

What is shown first is answered more often, whatever it is. A network that learns from answers without knowing where items stood takes the
place for the item; one that is told the place as a feature has none to be told when it ranks. So the place adds a number of its own to each
task's logit while learning, as a shallow tower does (Zhao et al. 2019, "Recommending what video to watch next"), and none in service: a
probability in an answer is that of an item that is shown first. numpy only.

Shapes: B samples, T tasks, P places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.platform.errors import CorruptArtifact

Float32Array = npt.NDArray[np.float32]
_VALUES, _ACCUMULATORS = "position_bias/values", "position_bias/accumulators"
_EPSILON = 1e-8


class PositionBias:
    """The numbers that places add to logits.

    Attributes:
        values_PT: float32; the first place, to which all others are compared, stays 0.
    """

    def __init__(self, places: int, num_tasks: int, *, rate: float, accumulator_init: float) -> None:
        """Start with no difference between places.

        Args:
            places: so many are told apart; those further behind share the last one's number. 1: places are not looked at, nothing is
                learned, and there is no state.
            num_tasks: of the network's heads.
            rate: of Adagrad.
            accumulator_init: Adagrad's sum of squares starts here.
        """
        self._rate, self._accumulator_init = np.float32(rate), accumulator_init
        self.values_PT = np.zeros((places, num_tasks), np.float32)
        self._accumulators_PT = np.full_like(self.values_PT, accumulator_init)

    def __bool__(self) -> bool:
        """Return whether places are told apart."""
        return len(self.values_PT) > 1

    def _rows(self, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the row of each position; an unknown one (0) is taken for the first."""
        return np.clip(np.asarray(positions, np.int64) - 1, 0, len(self.values_PT) - 1)

    def of(self, positions: Sequence[int]) -> Float32Array:
        """Return what to add to the logits of samples at these positions (1: shown first, 0: unknown), float32 [B, T]."""
        if not self:
            return np.zeros((len(positions), self.values_PT.shape[1]), np.float32)
        return self.values_PT[self._rows(positions)]

    def learn(self, positions: Sequence[int], of_logits_BT: Float32Array) -> float:
        """Move the numbers by how the gradient at each place differs from that of all; return the sum of squares of what moved them.

        What is wrong at all places alike is the network's to learn. A network that has only begun says far too much where clicks are rare;
        the numbers of the places are quicker than it, and would take that upon themselves: all but the first place's, which cannot move.

        Args:
            positions: of the B samples.
            of_logits_BT: gradient with respect to the logits, float32; 0 where the sample has no label of the task.
        """
        if not self:
            return 0.0
        rows_B = self._rows(positions)
        labelled_BT = of_logits_BT != 0
        of_all_T = of_logits_BT.sum(axis=0) / np.maximum(labelled_BT.sum(axis=0), 1)
        apart_BT = np.where(labelled_BT, of_logits_BT - of_all_T, 0.0)
        gradient_PT = np.stack(
            [np.bincount(rows_B, weights=column_B, minlength=len(self.values_PT)) for column_B in apart_BT.T], axis=1
        ).astype(np.float32)
        gradient_PT[0] = 0.0
        self._accumulators_PT += gradient_PT * gradient_PT
        self.values_PT -= self._rate * gradient_PT / (np.sqrt(self._accumulators_PT) + np.float32(_EPSILON))
        return float(np.square(gradient_PT, dtype=np.float64).sum())

    def corrected(self, probabilities_BT: Float32Array, positions: Sequence[int]) -> Float32Array:
        """Return probabilities of items shown first as those at these positions, float32 [B, T]."""
        if not self:
            return probabilities_BT
        odds_BT = np.exp(self.of(positions).astype(np.float64))
        kept_BT = probabilities_BT.astype(np.float64)
        return (kept_BT * odds_BT / (1.0 + kept_BT * (odds_BT - 1.0))).astype(np.float32)

    def state_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the state."""
        if not self:
            return {}
        return {_VALUES: self.values_PT.copy(), _ACCUMULATORS: self._accumulators_PT.copy()}

    def load_state_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the state by what `state_arrays` returned; places that it does not have begin as the last one that it has.

        A state that was learned without places begins anew.

        Raises:
            CorruptArtifact: an array is missing, or of another number of tasks.
        """
        if not self or _VALUES not in arrays:
            self.values_PT[:] = 0.0
            self._accumulators_PT[:] = self._accumulator_init
            return
        try:
            values, accumulators = (np.asarray(arrays[name], np.float32) for name in (_VALUES, _ACCUMULATORS))
        except KeyError as error:
            raise CorruptArtifact(f"learner: the state has no array {error.args[0]}") from error
        if values.ndim != 2 or not len(values) or values.shape[1] != self.values_PT.shape[1] or accumulators.shape != values.shape:
            raise CorruptArtifact(f"learner: {_VALUES} of shape {values.shape} are of other tasks")
        rows_P = np.minimum(np.arange(len(self.values_PT)), len(values) - 1)
        self.values_PT[:], self._accumulators_PT[:] = values[rows_P], accumulators[rows_P]
