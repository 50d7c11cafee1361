"""An epoch holds the scores that it learns from to the quality gate: what that stops, what lifts it, and what a restart remembers."""

from __future__ import annotations

import pytest

from services.common.platform.errors import CorruptArtifact
from services.trainer.group_columns import columns_of
from services.trainer.matured import BlockSize, MaturedLabels
from services.trainer.merge import Batch, Segment
from services.trainer.samples import Learnable
from tests.trainer_fakes.broker import FakeBroker, broker_with
from tests.trainer_fakes.life import Life, start
from tests.trainer_fakes.sample_logs import SPEC, group, sample_log

SMALL = BlockSize(min_ms=0, min_positives=10, min_negatives=10)


def opened(broker: FakeBroker) -> Life:
    life = start(broker)
    life.epoch.labels = MaturedLabels(life.epoch.config.tasks, life.epoch.config.unanswered, SMALL)
    return life


def learn_requests(life: Life, first: int, count: int, *, score: float) -> int:
    """Learn `count` requests with one answer and one negative each, of which the model says `score`; return the next request's number."""
    life.learner.score = score
    for request in range(first, first + count):
        both = [group(request, "u", ["1"], positive=True), group(request, "u", ["2"], positive=False)]
        for one in both:
            one.exposed_at_ms = 1_000 + request
        life.epoch.learn(Batch((Segment(0, 0, tuple(Learnable(columns_of(SPEC, one), "") for one in both)),)))
    return first + count


def publish(life: Life) -> None:
    epoch = life.epoch
    epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=7, traceparent="")
    epoch.publisher.flush(life.learner, 1_000)


def test_scores_that_become_worse_stop_deltas_and_bases_until_somebody_accepts_them() -> None:
    broker = broker_with(sample_log(1))
    life = opened(broker)
    at = learn_requests(life, 0, 300, score=0.5)
    publish(life)
    assert life.epoch.publisher.refusal == ""
    at = learn_requests(life, at, 40, score=0.02)
    before = broker.replica.dense["w"].copy()
    publish(life)
    assert "task 'interact'" in life.epoch.publisher.refusal
    assert broker.deltas[-1].header.heartbeat
    assert (broker.replica.dense["w"] == before).all()
    with pytest.raises(CorruptArtifact, match=r"the publish gate refuses base .*task 'interact'"):
        life.epoch.publish_base()
    life.epoch.accept_quality()
    learn_requests(life, at, 300, score=0.02)
    publish(life)
    assert life.epoch.publisher.refusal == ""
    assert broker.replica.equals(life.learner.state_arrays())


def test_a_restart_compares_with_what_was_before_it() -> None:
    broker = broker_with(sample_log(1))
    life = opened(broker)
    at = learn_requests(life, 0, 300, score=0.5)
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    again = opened(broker)
    learn_requests(again, at, 40, score=0.02)
    publish(again)
    assert "task 'interact'" in again.epoch.publisher.refusal
