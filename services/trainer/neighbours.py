"""What an epoch of the ranker worker needs of its neighbours, as Protocols: a learner, the broker's logs and the artifact store.

Also the two errors of the broker's side that end an epoch for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta

from services.trainer.bases import BaseStore
from services.trainer.checkpoints import CheckpointStore
from services.trainer.group_columns import GroupColumns
from services.trainer.owner import ControlOwner
from services.trainer.prequential import TaskQuality
from services.trainer.publisher import DeltaLog, Published


class Fenced(Exception):
    """A newer trainer has claimed a later epoch. This one must stop; retrying does not help."""


class HistoryLost(Exception):
    """The broker answers, but no longer holds what it held: retention removed it, or the broker lost its data. Retrying does not help."""


class Step(Protocol):
    """What one micro-batch did."""

    @property
    def num_samples(self) -> int:
        """Samples learned."""

    @property
    def gradient_norm(self) -> float:
        """L2 norm of all gradients that were applied."""

    @property
    def scores_BT(self) -> NDArray[np.float32]:
        """Probabilities from before the step: samples by tasks, in the groups' order."""


class Learner(Published, Protocol):
    """What learns. `services.trainer.learner.Learner` is the real one."""

    def learn(self, groups: Sequence[GroupColumns]) -> Step:
        """Learn one micro-batch."""

    def prequential(self) -> Mapping[str, TaskQuality]:
        """Return how good the scores of the latest samples were before they were learned, by task."""

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the whole state."""

    def load_state_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace the state by what `state_arrays` returned."""

    def state_hash(self) -> str:
        """Return a hash of rows, optimizer state and dense weights."""


class ReadableDeltaLog(DeltaLog, Protocol):
    """ranker.deltas.v1, one shard, to write and to read back."""

    def range(self) -> tuple[int, int]:
        """Return [first offset, next offset)."""

    def read(self, first: int, end: int) -> Iterable[Delta | None]:
        """Go through the records at offsets [first, end), None for one that is no delta; they need not fit into memory together.

        Raises, when the first one is asked for or later:
            HistoryLost: they are no longer there.
            Unavailable: the broker does not answer.
        """


class SampleRanges(Protocol):
    """samples.v1."""

    def ranges(self) -> list[tuple[int, int]]:
        """Return [first offset, next offset) per partition."""

    def seek(self, offsets: Sequence[int]) -> None:
        """Read on from these offsets."""


class BaseLog(Protocol):
    """ranker.bases.v1."""

    def newest(self, model: str) -> BasePointer | None:
        """Return the model's newest pointer."""

    def append(self, pointer: BasePointer) -> None:
        """Write a pointer, acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The broker's side."""

    samples: SampleRanges
    deltas: ReadableDeltaLog
    bases: BaseLog
    owner: ControlOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The artifacts' side."""

    checkpoints: CheckpointStore
    bases: BaseStore
