"""An epoch over logs in which a joiner repeats itself."""

import random

import pytest

from tests.trainer_fakes.broker import broker_with
from tests.trainer_fakes.life import start
from tests.trainer_fakes.sample_logs import sample_log
from tests.unit.services.trainer.test_epoch import learn


@pytest.mark.parametrize("seed", range(6))
def test_a_window_of_any_size_learns_a_repeated_sample_once(seed: int) -> None:
    log = sample_log(seed)
    groups = [record.group for partition in log for record in partition if record.WhichOneof("record") == "group"]
    everything = [sample.sample_id for group in groups for sample in group.samples]
    life = start(broker_with(log), dedup_window_samples=1)
    learn(life, random.Random(0))
    assert life.epoch.counters.samples_trained == len(set(everything)) < len(everything)
    assert life.epoch.counters.refused_skipped == 0


def test_samples_that_cannot_be_told_from_repetitions_are_refused_and_the_log_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    life = start(broker_with(sample_log(1)), dedup_window_samples=1, config={"dedup_max_samples": 8})
    learn(life, random.Random(0))
    counters = life.epoch.counters
    assert counters.refused_skipped > 0
    (first, *_) = [line for line in caplog.messages if "samples refused so far" in line]
    assert "TUNEMESH_TRAINER_DEDUP_MAX_SAMPLES" in first
    assert sum("samples refused so far" in line for line in caplog.messages) <= counters.refused_skipped.bit_length()
