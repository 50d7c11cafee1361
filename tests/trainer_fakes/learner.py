"""A learner without torch, whose result depends on order and repetition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.platform.ids import entity_key
from services.trainer.group_columns import GroupColumns
from services.trainer.prequential import TaskQuality
from services.trainer.trainer_table import Eviction, TrainerTable
from tests.trainer_fakes.sample_logs import SPEC


@dataclass(frozen=True)
class FakeStep:
    num_samples: int
    gradient_norm: float
    scores_BT: NDArray[np.float32]


class FakeLearner:
    """Rows and one dense tensor that depend on every sample, its place in the order, and how often it was learned."""

    def __init__(self, steps_to_live: int | None = 15, evict_every: int = 4) -> None:
        eviction = Eviction(steps_to_live=steps_to_live)
        self.tables = {name: TrainerTable(name, dim, eviction=eviction, seed=3) for name, dim in SPEC.table_dims.items()}
        self.dense = np.zeros(4, np.float32)
        self.steps = 0
        self.score = 0.5  # what it says of every sample
        self.evict_every = evict_every

    def learn(self, groups: Sequence[GroupColumns]) -> FakeStep:
        self.steps += 1
        for table in self.tables.values():
            table.advance(self.steps)
        for group in groups:
            for sample_id, item_id, meaning in zip(group.sample_ids, group.item_ids, group.meanings, strict=True):
                value = np.float32(1.0 + np.nansum(meaning.labels_T) + sum(weight for weight in meaning.numbers if weight < 0))
                self._update("user", group.features.user_key, value)
                self._update("item", entity_key(item_id), value)
                self.dense[sample_id % 4] = np.tanh(self.dense[sample_id % 4] * np.float32(0.9) + value / len(groups))
        if self.steps % self.evict_every == 0:
            for table in self.tables.values():
                table.evict(self.steps)
        num_samples = sum(len(group) for group in groups)
        scores_BT = np.full((num_samples, len(SPEC.tasks)), self.score, np.float32)
        return FakeStep(num_samples, gradient_norm=float(len(groups)), scores_BT=scores_BT)

    def _update(self, name: str, key: int, value: np.float32) -> None:
        table, ids = self.tables[name], np.array([key], np.int64)
        table.count(ids)
        slots = table.slots_for_update(ids)
        table.accumulators[slots] += value * value
        table.rows[slots] = np.tanh(table.rows[slots] * np.float32(0.8) + value / np.sqrt(1 + table.accumulators[slots][:, 0]))
        table.mark_touched(ids)

    def dense_state(self) -> dict[str, NDArray[np.float32]]:
        return {"w": self.dense.copy()}

    def prequential(self) -> Mapping[str, TaskQuality]:
        return {"like": TaskQuality(num_samples=10, auc=0.75, log_loss=0.5, calibration=1.0)}

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        state = {"dense/w": self.dense.copy(), "learner/steps": np.array([self.steps])}
        for table in self.tables.values():
            state |= table.state_arrays()
        return state

    def load_state_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.dense, self.steps = arrays["dense/w"].copy(), int(arrays["learner/steps"][0])
        for table in self.tables.values():
            table.load_state_arrays(arrays)

    def state_hash(self) -> str:
        return "/".join([*(table.content_hash() for table in self.tables.values()), self.dense.tobytes().hex(), str(self.steps)])
