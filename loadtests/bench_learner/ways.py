"""One way to learn recorded samples, in a process of its own: a line on standard input is one run, its numbers come back as a line of JSON.

It imports nothing of this folder, and of the project only what has stood there for long, so that it runs over another checkout too
(PYTHONPATH says which). The time is processor time of the whole process: other work on the machine does not count.

Ways: `epoch` takes the bytes of samples.v1 through intake, merge, de-duplication, learner and the gate's labels; `step` is the learner
alone; `torch` is what one would write with torch alone: nn.Embedding(sparse=True) with torch.optim.Adagrad, the same network with
torch.optim.Adam, and the same micro-batches, their ids already indices and their features already tensors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tunemesh.events.v1.delta_pb2 import ROW_DTYPE_FP32
from tunemesh.samples.v1.sample_pb2 import SampleGroup, SampleRecord, Tick

from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs, assemble
from services.trainer.checkpoints import Counters
from services.trainer.dedup import DedupWindow
from services.trainer.epoch import Epoch, EpochConfig
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.matured import MaturedLabels
from services.trainer.merge import TickMerge, start_position
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.publisher import DeltaPublisher, Identity
from services.trainer.quality_gate import QualityGate, QualityLimits
from services.trainer.samples import parse_record

BATCH_GROUPS = 16
_OUT_OF_REACH = QualityLimits(auc_drop=1e9, log_loss_rise=1e9, calibration_factor=1e9)


@dataclass(frozen=True, slots=True)
class Run:
    """Numbers of one run."""

    samples: int
    steps: int
    cpu_s: float
    loss: float


@dataclass(frozen=True, slots=True)
class Round:
    """What the partitions hold between two ticks: (partition, value) each, ticks included."""

    records: list[tuple[int, bytes]]


def rounds_of(path: Path, num_partitions: int) -> tuple[list[Round], list[tuple[str, bytes]]]:
    """Return the recorded samples as the logs of so many partitions, and the headers that each record has."""
    with np.load(path) as arrays:
        data, ends, ticks, users = arrays["values"].tobytes(), arrays["ends"].tolist(), arrays["ticks"].tolist(), arrays["users"].tolist()
        headers = [(str(key), str(value).encode()) for key, value in zip(arrays["header_keys"], arrays["header_values"], strict=True)]
    rounds = [Round([]) for _ in range(ticks[-1] + 1)]
    for start, end, tick, user in zip([0, *ends[:-1]], ends, ticks, users, strict=True):
        rounds[tick].records.append((user % num_partitions, data[start:end]))
    for number, each in enumerate(rounds):
        tick_value = SampleRecord(tick=Tick(tick=number, watermark_ms=1_700_000_000_000 + 500 * number)).SerializeToString()
        each.records.extend((partition, tick_value) for partition in range(num_partitions))
    return rounds, headers


def fresh_epoch(spec: FeatureSpec, learner: Learner, num_partitions: int) -> Epoch:
    """Return an epoch that learns and never publishes."""
    absent = cast(Any, None)
    limits = PublishGateLimits(max_row_norm=1e9, max_dense_norm=1e9)
    unanswered = tuple(task.unanswered is not None for task in spec.tasks)
    config = EpochConfig(
        model=spec.model,
        schema_hash=spec.schema_hash,
        batch_groups=BATCH_GROUPS,
        dedup_window_samples=2_000_000,
        dedup_max_samples=20_000_000,
        dtype=ROW_DTYPE_FP32,
        limits=limits,
        quality=_OUT_OF_REACH,
        tasks=spec.task_names,
        unanswered=unanswered,
        on_lineage_change="refuse",
        on_lineage_change_variable="",
        actor="",
    )
    position = start_position([0] * num_partitions)
    identity = Identity(model=spec.model, schema_hash=spec.schema_hash, lineage_id="", epoch=1)
    publisher = DeltaPublisher(
        log=absent, identity=identity, dtype=ROW_DTYPE_FP32, limits=limits, base_id="", next_offset=0, published_position=position
    )
    return Epoch(
        learner=learner,
        logs=absent,
        stores=absent,
        config=config,
        lineage_id="",
        number=1,
        merge=TickMerge(position, batch_groups=BATCH_GROUPS),
        dedup=DedupWindow(config.dedup_window_samples, config.dedup_max_samples),
        publisher=publisher,
        labels=MaturedLabels(config.tasks, unanswered),
        quality=QualityGate(config.quality),
        counters=Counters(),
        now_ms=lambda: 0,
    )


class Counting(Learner):
    """A learner that remembers what its steps did."""

    def __init__(self, spec: FeatureSpec) -> None:
        """Nothing is learned yet."""
        super().__init__(spec, LearnerConfig())
        self.loss, self.samples = 0.0, 0

    def step(self, groups: Any) -> Any:
        """Learn, and count where `learn`, which other checkouts may lack, does not."""
        stats = super().step(groups)
        return stats if hasattr(Learner, "learn") else self._counted(stats)

    def learn(self, groups: Any, *lesson: Any, **lessons: Any) -> Any:
        """Learn, and count. Other checkouts know no lessons."""
        return self._counted(super().learn(groups, *lesson, **lessons))

    def _counted(self, stats: Any) -> Any:
        self.loss += sum(stats.loss_by_task)
        self.samples += stats.num_samples
        return stats


def epoch_way(spec: FeatureSpec, path: Path, num_partitions: int) -> Callable[[], Run]:
    """From the bytes of the log to learned weights."""
    rounds, headers = rounds_of(path, num_partitions)

    def run() -> Run:
        learner = Counting(spec)
        epoch = fresh_epoch(spec, learner, num_partitions)
        offsets = [0] * num_partitions
        started = time.process_time()
        for each in rounds:
            for partition, value in each.records:
                epoch.merge.push(partition, parse_record(spec, offsets[partition], value, headers))
                offsets[partition] += 1
            while (batch := epoch.merge.next_batch()) is not None:
                epoch.learn(batch)
        return Run(learner.samples, learner.steps, time.process_time() - started, learner.loss)

    return run


def micro_batches(path: Path) -> Iterator[list[SampleGroup]]:
    """Yield the groups of one partition's log in micro-batches, all full but the last."""
    groups: list[SampleGroup] = []
    for each in rounds_of(path, 1)[0]:
        groups += [SampleRecord.FromString(value).group for _, value in each.records[:-1]]
    for at in range(0, len(groups), BATCH_GROUPS):
        yield groups[at : at + BATCH_GROUPS]


def step_way(spec: FeatureSpec, path: Path) -> Callable[[], Run]:
    """Learner.learn alone, of groups that were read before."""
    from services.trainer.group_columns import columns_of

    batches = [[columns_of(spec, group) for group in batch] for batch in micro_batches(path)]

    def run() -> Run:
        learner = Counting(spec)
        started = time.process_time()
        for batch in batches:
            learner.learn(batch)
        return Run(learner.samples, learner.steps, time.process_time() - started, learner.loss)

    return run


@dataclass(frozen=True, slots=True)
class _Tensors:
    inputs: RankerInputs
    user_at_G: torch.Tensor
    item_at_B: torch.Tensor
    history_at_GL: torch.Tensor
    mask_GL1: torch.Tensor
    ones_BT: torch.Tensor
    zeros_BT: torch.Tensor


class _Indices(dict[int, int]):
    """Consecutive indices by key."""

    def __missing__(self, key: int) -> int:
        self[key] = len(self)
        return self[key]

    def of(self, keys: Any) -> torch.Tensor:
        """Return int64 indices of an array of keys."""
        return torch.from_numpy(np.asarray([self[key] for key in keys.reshape(-1).tolist()], np.int64).reshape(keys.shape))


def torch_way(spec: FeatureSpec, path: Path) -> Callable[[], Run]:
    """What one would write with torch alone."""
    from services.common.ranker.networks.interface import Rows
    from services.common.ranker.networks.registry import make_network

    users, items = _Indices(), _Indices()
    prepared = [_tensors(spec, groups, users, items) for groups in micro_batches(path)]
    shift_T = torch.tensor([-float(np.log(spec.negatives.keep_rate)) if task.unanswered is not None else 0.0 for task in spec.tasks])
    config = LearnerConfig()

    def run() -> Run:
        network = make_network(spec, 0)
        user_rows, item_rows = (nn.Embedding(len(each), spec.tables.item.dim, sparse=True) for each in (users, items))
        for table in (user_rows, item_rows):
            nn.init.uniform_(table.weight, -config.init_scale, config.init_scale)
        rows_optimizer = torch.optim.Adagrad(
            [{"params": user_rows.weight, "lr": config.user_rate}, {"params": item_rows.weight, "lr": config.item_rate}],
            initial_accumulator_value=config.accumulator_init,
        )
        dense_optimizer = torch.optim.Adam(network.parameters(), lr=config.dense_rate)
        samples, total = 0, 0.0
        started = time.process_time()
        for batch in prepared:
            rows = Rows(user_rows(batch.user_at_G), item_rows(batch.item_at_B), item_rows(batch.history_at_GL) * batch.mask_GL1)
            shifted_BT = network(batch.inputs, rows) + shift_T
            loss = (batch.ones_BT * functional.softplus(-shifted_BT) + batch.zeros_BT * functional.softplus(shifted_BT)).sum()
            rows_optimizer.zero_grad()
            dense_optimizer.zero_grad()
            (loss / config.loss_unit).backward()
            rows_optimizer.step()
            dense_optimizer.step()
            total += float(loss)
            samples += len(batch.ones_BT)
        return Run(samples, len(prepared), time.process_time() - started, total)

    return run


def _tensors(spec: FeatureSpec, groups: list[SampleGroup], users: _Indices, items: _Indices) -> _Tensors:
    from services.trainer.group_columns import columns_of, loss_weights

    parts = [
        (exposure_block.decode(group.features_block, spec), np.asarray([entity_key(sample.item_id) for sample in group.samples], np.int64))
        for group in groups
    ]
    inputs = assemble(spec, parts)
    ones_BT, zeros_BT = loss_weights([columns_of(spec, group) for group in groups])
    return _Tensors(
        inputs,
        users.of(inputs.user_keys_G),
        items.of(inputs.item_keys_B),
        items.of(inputs.history_keys_GL),
        torch.from_numpy(inputs.history_mask_GL).unsqueeze(2),
        torch.from_numpy(ones_BT),
        torch.from_numpy(zeros_BT),
    )


def main() -> int:
    """Answer each line of standard input with one run, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("epoch", "step", "torch"))
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--partitions", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = FeatureSpec.load(options.spec)
    ways: dict[str, Callable[[], Callable[[], Run]]] = {
        "epoch": lambda: epoch_way(spec, options.samples, options.partitions),
        "step": lambda: step_way(spec, options.samples),
        "torch": lambda: torch_way(spec, options.samples),
    }
    run = ways[options.way]()
    for _ in sys.stdin:
        one = run()
        print(json.dumps({"samples": one.samples, "steps": one.steps, "cpu_s": one.cpu_s, "loss": one.loss}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
