"""Rows of declared features through kills and restores: what the trainer and its replicas end with is that of an uninterrupted run."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tunemesh.samples.v1.sample_pb2 import SampleRecord, Tick

from services.trainer.learner import Learner, LearnerConfig
from services.trainer.restore import RestoreRequest, decide
from services.trainer.samples import parse_record
from tests.learning import KEYED, groups, with_features
from tests.trainer_fakes.broker import FakeBroker, bootstrapped_now, broker_with
from tests.trainer_fakes.faults import Crash, Faults
from tests.trainer_fakes.life import Life, start

pytestmark = pytest.mark.ml

# Rows come and go: a table that forgets soon and admits late, and one that is small.
LIMITS = {"both": {"steps_to_live": 3}, "hour": {"max_rows": 3}}
TEAM = with_features([{kind: {**keys, **LIMITS.get(keys["feature_name"], {})} for kind, keys in one.items()} for one in KEYED])
TABLES = {"places", "tags", "both", "hour"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def logs() -> list[list[SampleRecord]]:
    """Groups of two partitions, with a tick after every few."""
    written: list[list[SampleRecord]] = [[], []]
    for number, group in enumerate(groups(96, spec=TEAM)):
        log = written[number % 2]
        group.exposure_offset = number // 2
        log.append(SampleRecord(group=group))
        if number % 12 >= 10:
            log.append(SampleRecord(tick=Tick(tick=100 + number // 12, watermark_ms=number, exposures_position=max(number // 2 - 8, 0))))
    return written


def born(broker: FakeBroker, faults: Faults | None = None) -> Life:
    return start(broker, faults=faults, make_learner=lambda: Learner(TEAM, LearnerConfig(evict_every_steps=3)), spec=TEAM)


def batches(life: Life) -> Iterator[int]:
    """Learn, a batch at a time, to the end of the log; every batch is published."""
    number, more = 0, True
    while more:
        for record in life.samples.poll(0):
            life.epoch.merge.push(record.partition, parse_record(TEAM, record.offset, record.value, record.headers))
        more = any(at < end for at, (_, end) in zip(life.samples.positions, life.samples.ranges(), strict=True))
        while (batch := life.epoch.merge.next_batch()) is not None:
            life.epoch.learn(batch)
            publish(life)
            number += 1
            yield number


def publish(life: Life) -> None:
    epoch = life.epoch
    epoch.publisher.flush(epoch.learner, 1_000)
    epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=7, traceparent="")
    epoch.publisher.flush(epoch.learner, 1_000)


def live(life: Life, source: random.Random) -> None:
    for _ in batches(life):
        if source.random() < 0.3:
            life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
        if source.random() < 0.1:
            life.epoch.publish_base()


@pytest.fixture(scope="module")
def uninterrupted(logs: list[list[SampleRecord]]) -> str:
    torch.set_num_threads(1)
    broker = broker_with(logs)
    life = born(broker)
    seen: dict[str, set[int]] = {name: set() for name in TABLES}
    for _ in batches(life):
        for name in TABLES:
            seen[name] |= set(broker.replica.rows[name])
    assert life.epoch.learner.tables.keys() >= TABLES and all(seen.values())
    gone = {name for name in TABLES if seen[name] - set(broker.replica.rows[name])}
    assert {"both", "hour"} <= gone, "else no tombstone of such a table was published"
    return life.epoch.learner.state_hash()


def test_after_kills_the_trainer_and_its_replicas_have_the_rows_of_an_uninterrupted_run(logs, uninterrupted: str) -> None:
    source, num_crashes = random.Random(4), 0
    broker = broker_with(logs)
    for countdown in (5, 9, 12, 7, 20):
        try:
            live(born(broker, Faults(countdown=countdown, after=source.random() < 0.5)), source)
        except Crash:
            num_crashes += 1
    assert num_crashes >= 3
    life = born(broker)
    live(life, source)
    publish(life)
    assert life.epoch.learner.state_hash() == uninterrupted
    state = life.epoch.learner.state_arrays()
    assert broker.replica.equals(state) and bootstrapped_now(broker).equals(state)


def test_a_restore_takes_rows_of_features_back_and_learning_again_ends_as_if_nothing_had_happened(logs, uninterrupted: str) -> None:
    broker = broker_with(logs)
    life = born(broker)
    for number in batches(life):
        if number == 10:
            life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=100)
            then = {name: array.copy() for name, array in life.epoch.learner.state_arrays().items()}
    assert not broker.replica.equals(then)
    assert any(not np.array_equal(then[f"table/{name}/ids"], life.epoch.learner.tables[name].ids()) for name in TABLES)
    request = RestoreRequest(not_after=100, skip_later_samples=False, actor="ann")
    decision = decide(life.epoch, life.samples, TEAM, request)
    life.epoch.stores.checkpoints.write(decision.checkpoint, now_ms=200)
    life.epoch = life.open()
    assert broker.replica.equals(then) and bootstrapped_now(broker).equals(then)
    for _ in batches(life):
        pass
    assert life.epoch.learner.state_hash() == uninterrupted
    assert broker.replica.equals(life.epoch.learner.state_arrays())
