"""When the gate refuses for the quality of scores, and when it does not. Its error rates: tests/quality_streams.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.trainer.matured import Block
from services.trainer.quality_gate import QualityGate, QualityLimits
from tests.quality_streams import HARMS, Life, Stream, Trainer, power

LIMITS = QualityLimits(auc_drop=0.05, log_loss_rise=0.1, calibration_factor=1.5)


def block(*, auc: float = 0.75, log_loss: float = 0.8, calibration: float = 1.0, task: str = "like") -> Block:
    return Block(task, 100, 100, auc, log_loss, math.log(calibration))


def gate_with(num_blocks: int, limits: QualityLimits = LIMITS, calibration: float = 1.0) -> QualityGate:
    gate = QualityGate(limits)
    rng = np.random.default_rng(0)
    for _ in range(num_blocks):
        noise = rng.normal(0, 0.005)
        gate.judge(block(auc=0.75 + noise, log_loss=0.8 + noise, calibration=calibration * math.exp(4 * noise)))
    return gate


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"auc": 0.65}, "AUC 0.65 and 0.65 in the last 2 blocks of matured labels, 0.749 in the 20 before"),
        ({"log_loss": 0.95}, "log-loss over a constant guess's 0.95 and 0.95"),
        ({"calibration": 2.0}, "calibration 2 and 2"),
        ({"calibration": 0.5}, "calibration 0.5 and 0.5"),
    ],
)
def test_two_bad_blocks_in_a_row_are_refused_in_words(worse: dict[str, float], words: str) -> None:
    gate = gate_with(20)
    gate.judge(block(**worse))
    assert gate.refusal == ""
    gate.judge(block(**worse))
    assert gate.refusal.startswith("task 'like': ")
    assert words in gate.refusal
    gate.judge(block())
    assert gate.refusal  # until somebody decides


def test_one_bad_block_is_an_accident_and_the_next_good_one_clears_it() -> None:
    gate = gate_with(20)
    for _ in range(5):
        gate.judge(block(auc=0.6))
        gate.judge(block())
    assert gate.refusal == ""


def test_two_blocks_that_are_bad_in_different_numbers_are_not_refused_but_three_are() -> None:
    gate = gate_with(20)
    for _ in range(3):
        gate.judge(block(auc=0.6))
        gate.judge(block(calibration=2.0))
        gate.judge(block())
    assert gate.refusal == ""
    gate = gate_with(20)
    gate.judge(block(auc=0.6))
    gate.judge(block(log_loss=0.95))
    assert gate.refusal == ""
    gate.judge(block(auc=0.61))
    assert gate.refusal.startswith(
        "task 'like': each of the last 3 blocks of matured labels is bad in one number (AUC 0.6 instead of 0.749; log-loss over a constant "
        "guess's 0.95 instead of 0.799; AUC 0.61 instead of 0.749); roll back"
    )


def test_an_accident_does_not_blind_the_gate_to_the_next_harm() -> None:
    for accident, harm in (
        ({"calibration": 11.5}, {"calibration": 2.0}),
        ({"auc": 0.1}, {"auc": 0.65}),
        ({"log_loss": 5.0}, {"log_loss": 0.95}),
    ):
        gate = gate_with(20)
        gate.judge(block(**accident))
        for _ in range(2):
            gate.judge(block())
        assert gate.refusal == ""
        for _ in range(2):
            gate.judge(block(**harm))
        assert gate.refusal, harm


def test_better_scores_and_smaller_losses_than_matter_pass() -> None:
    gate = gate_with(20, calibration=3.0)
    for _ in range(30):
        gate.judge(block(auc=0.9, log_loss=0.5, calibration=1.0))
    assert gate.refusal == ""
    gate = gate_with(20)
    for _ in range(30):
        gate.judge(block(auc=0.71, log_loss=0.89, calibration=1.4))
    assert gate.refusal == ""


def test_without_enough_blocks_to_compare_with_nothing_is_refused() -> None:
    gate = gate_with(15)
    for _ in range(5):
        gate.judge(block(auc=0.5))
    assert gate.refusal == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused_at_once(value: float) -> None:
    gate = QualityGate(LIMITS)
    gate.judge(Block("like", 1, 1, 0.5, value, 0.0))
    assert gate.refusal == "task 'like': scores are NaN, infinite or all zero"


def test_tasks_are_judged_by_themselves() -> None:
    gate = gate_with(20)
    for _ in range(5):
        gate.judge(block(task="interact", auc=0.55))
    assert gate.refusal == ""


def test_whoever_resumes_takes_the_present_quality_for_the_one_to_hold() -> None:
    gate = gate_with(20)
    for _ in range(2):
        gate.judge(block(auc=0.6))
    gate.forget()
    assert gate.refusal == ""
    for _ in range(20):
        gate.judge(block(auc=0.6 + 0.001))
    assert gate.refusal == ""
    for _ in range(2):
        gate.judge(block(auc=0.5))
    assert "0.601 in the 20 before" in gate.refusal


def test_a_switched_off_check_never_refuses() -> None:
    gate = gate_with(20, QualityLimits(auc_drop=math.inf, log_loss_rise=math.inf, calibration_factor=math.inf))
    for _ in range(10):
        gate.judge(block(auc=0.1, log_loss=9.0, calibration=9.0))
    assert gate.refusal == ""


def test_a_checkpoint_carries_what_the_next_process_compares_with() -> None:
    arrays = gate_with(20).state_arrays()
    assert {name: array.shape for name, array in arrays.items()} == {"quality/like": (20, 3)}
    gate = QualityGate(LIMITS)
    gate.load_state_arrays({**arrays, "learner/steps": np.zeros(1), "quality/other": np.zeros((2, 9))})
    for _ in range(2):
        gate.judge(block(auc=0.6))
    assert "in the 20 before" in gate.refusal
    assert len(gate_with(1_000).state_arrays()["quality/like"]) == 40


def test_restarts_rollbacks_and_late_partitions_leave_the_blocks_of_a_clean_stream_as_they_are() -> None:
    calm = Trainer(Stream(1))
    assert calm.live(1_260) is None
    usual = [block.log_calibration for block in calm.blocks]
    for life in (Life(restarts=(751,), rollbacks=(1_007,)), Life(outages=(777,))):
        trainer = Trainer(Stream(1))
        assert trainer.live(1_260, life) is None, life
        assert len(trainer.blocks) >= 30
        assert min(usual) - 0.2 < min(block.log_calibration for block in trainer.blocks), life
        assert max(block.log_calibration for block in trainer.blocks) < max(usual) + 0.2, life


def test_what_is_plainly_broken_is_refused_within_five_minutes_and_what_is_sound_is_not() -> None:
    names = ("all items get another item's score", "10 % of the labels are turned round", "logits are doubled")
    found = power({name: HARMS[name] for name in names}, 1, 300)  # behind half an hour that passes
    assert all(len(times) == 1 and times[0] is not None for times in found.values()), found
