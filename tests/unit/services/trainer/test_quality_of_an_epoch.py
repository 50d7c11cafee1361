"""An epoch holds the scores that it learns from to the quality gate: what that stops, what lifts it, and what a restart remembers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.common.platform.errors import CorruptArtifact
from services.trainer.group_columns import columns_of
from services.trainer.matured import BlockSize, MaturedLabels
from services.trainer.merge import Batch, Segment, TickRecord
from services.trainer.samples import Learnable
from tests.trainer_fakes.broker import FakeBroker, broker_with
from tests.trainer_fakes.life import Life, start
from tests.trainer_fakes.sample_logs import SPEC, group, sample_log

SMALL = BlockSize(min_ms=0, min_positives=10, min_negatives=10)


def opened(broker: FakeBroker) -> Life:
    life = start(broker)
    life.epoch.labels = MaturedLabels(life.epoch.config.tasks, life.epoch.config.unanswered, SMALL)
    return life


def learn(life: Life, *, watermark_ms: int, answered: Sequence[int] = (), closed: Sequence[int] = ()) -> None:
    """Learn one answer each of some requests, and one negative each of others, whose windows close; request N is shown at 1000 + N ms."""
    groups = [group(request, "u", ["1"], positive=True) for request in answered]
    groups += [group(request, "u", ["2"], positive=False) for request in closed]
    for request, one in zip([*answered, *closed], groups, strict=True):
        one.exposed_at_ms = 1_000 + request
    life.epoch.learn(Batch((Segment(0, 0, tuple(Learnable(columns_of(SPEC, one), "") for one in groups), watermark_ms),)))


def learn_requests(life: Life, first: int, count: int, *, score: float) -> int:
    """Learn `count` requests with one answer and one negative each, of which the model says `score`; return the next request's number.

    The first one says where the partition is, the second one from when on exposures count.
    """
    life.learner.score = score
    for request in range(first, first + count):
        learn(life, watermark_ms=999 + request, answered=[request], closed=[request])
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


def test_exposures_that_were_answered_before_a_restart_do_not_look_like_a_loss_of_calibration() -> None:
    broker = broker_with(sample_log(1))
    life = opened(broker)
    at = learn_requests(life, 0, 300, score=0.5)
    shown = range(at, at + 200)
    learn(life, watermark_ms=999 + at, answered=[request for request in shown if request % 4])
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    again = opened(broker)
    again.learner.score = 0.5
    learn(again, watermark_ms=999 + at, answered=[request for request in shown if request % 4 == 0])
    for request in shown:
        learn(again, watermark_ms=999 + shown.stop, closed=[request])
    learn_requests(again, shown.stop, 100, score=0.5)
    assert again.epoch.quality.refusal == ""
    learn_requests(again, shown.stop + 100, 40, score=0.02)
    assert "task 'interact'" in again.epoch.quality.refusal


def test_an_epoch_counts_exposures_that_are_newer_than_all_that_its_checkpoint_knows() -> None:
    broker = broker_with(sample_log(1))
    life = start(broker)
    for partition, watermark_ms in enumerate((1_200, 1_300)):
        life.epoch.merge.push(partition, TickRecord(life.epoch.merge.position.offsets[partition], 7, watermark_ms))
    assert life.epoch.merge.next_batch() is None
    life.epoch.stores.checkpoints.write(life.epoch.cut(), now_ms=7)
    again = start(broker)
    learn(again, watermark_ms=0, answered=[0])
    learn(again, watermark_ms=100, answered=[300, 301])  # shown at 1,300 and at 1,301 ms
    assert again.epoch.labels.num_waiting == 1


def test_a_resume_that_has_nothing_to_accept_leaves_the_reference_as_it_is() -> None:
    life = opened(broker_with(sample_log(1)))
    at = learn_requests(life, 0, 300, score=0.5)
    life.epoch.accept_quality()
    learn_requests(life, at, 40, score=0.02)
    publish(life)
    assert "task 'interact'" in life.epoch.publisher.refusal
