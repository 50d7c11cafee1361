"""One process of the trainer over the broker and disk that outlive it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32

from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.epoch import Epoch, EpochConfig
from services.trainer.epoch_start import open_epoch
from services.trainer.neighbours import Learner, Logs, Stores
from services.trainer.owner import ControlOwner
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.quality_gate import QualityLimits
from tests.trainer_fakes.broker import FakeBroker
from tests.trainer_fakes.faults import Faults
from tests.trainer_fakes.learner import FakeLearner
from tests.trainer_fakes.logs import FakeBaseLog, FakeControlLog, FakeDeltaLog, FakeSamples
from tests.trainer_fakes.sample_logs import SPEC
from tests.trainer_fakes.stores import FakeBases, FakeCheckpoints


@dataclass
class Life:
    """One process: everything that a crash takes with it."""

    open: Callable[[], Epoch]
    samples: FakeSamples
    epoch: Epoch
    num_epochs: int = 0

    @property
    def learner(self) -> FakeLearner:
        assert isinstance(self.epoch.learner, FakeLearner)
        return self.epoch.learner

    def begin_epoch(self) -> Epoch:
        """What the worker is given: the epoch that there is, then, at each restore, another one."""
        self.num_epochs += 1
        if self.num_epochs > 1:
            self.epoch = self.open()
        return self.epoch


def start(
    broker: FakeBroker,
    *,
    faults: Faults | None = None,
    source: random.Random | None = None,
    config: Mapping[str, Any] | None = None,
    initial: Mapping[str, NDArray[Any]] | None = None,
    dedup_window_samples: int = 500,
    now_ms: Callable[[], int] = lambda: 7,
    make_learner: Callable[[], Learner] = FakeLearner,
    spec: FeatureSpec = SPEC,
) -> Life:
    faults = faults or Faults()
    samples = FakeSamples(broker, source)
    fields: dict[str, Any] = {
        "model": spec.model,
        "schema_hash": spec.schema_hash,
        "batch_groups": 3,
        "dedup_window_samples": dedup_window_samples,
        "dedup_max_samples": 100_000,
        "dtype": ROW_DTYPE_FP32,
        "limits": PublishGateLimits(max_row_norm=1e6, max_dense_norm=1e6),
        "quality": QualityLimits(auc_drop=0.05, log_loss_rise=0.1, calibration_factor=1.5),
        "tasks": spec.task_names,
        "unanswered": tuple(task.unanswered is not None for task in spec.tasks),
        "on_lineage_change": "refuse",
        "on_lineage_change_variable": "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE",
        "actor": "test",
        **(config or {}),
    }
    owner = ControlOwner(FakeControlLog(broker, faults), actor="test", now_ms=lambda: 7)

    def opened() -> Epoch:
        return open_epoch(
            make_learner,
            Logs(samples=samples, deltas=FakeDeltaLog(broker, faults, source), bases=FakeBaseLog(broker, faults), owner=owner),
            Stores(checkpoints=FakeCheckpoints(broker.disk, faults), bases=FakeBases(broker.disk, faults, fields["dtype"])),
            EpochConfig(**fields),
            now_ms=now_ms,
            new_lineage_id=f"lineage-{uuid.uuid4().hex[:6]}",
            initial_arrays=lambda: initial,
        )

    return Life(opened, samples, opened())
