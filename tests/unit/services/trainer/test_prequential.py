from __future__ import annotations

import math

import numpy as np
import pytest

from services.trainer.prequential import PrequentialWindow


def column(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)[:, None]


def test_quality_is_that_of_the_scores_that_were_given() -> None:
    window = PrequentialWindow(["like"], 100)
    window.add(column(0.9, 0.2, 0.4, 0.2), column(1, 0, 1, 1), column(0, 1, 0, 0))
    quality = window.quality()["like"]
    assert quality.num_samples == 4
    # Of three (positive, negative) pairs two are right and one is a tie.
    assert quality.auc == pytest.approx(2.5 / 3)
    assert quality.log_loss == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.2)) / 4, rel=1e-5)
    assert quality.calibration == pytest.approx(1.7 / 3, rel=1e-5)


def test_only_the_latest_labels_count_and_absent_ones_never_do() -> None:
    window = PrequentialWindow(["a", "b"], 3)
    for _ in range(400):
        window.add(np.full((1, 2), 0.1, np.float32), np.asarray([[0, 0]], np.float32), np.asarray([[1, 0]], np.float32))
    window.add(np.full((3, 2), 0.9, np.float32), np.asarray([[1, 0]] * 3, np.float32), np.zeros((3, 2), np.float32))
    quality = window.quality()
    assert quality.keys() == {"a"}
    assert quality["a"].num_samples == 3
    assert quality["a"].calibration == pytest.approx(0.9, rel=1e-5)
    assert math.isnan(quality["a"].auc)


def test_a_sample_that_takes_a_negative_back_is_not_counted() -> None:
    window = PrequentialWindow(["a"], 10)
    window.add(column(0.5), column(1), column(-1))
    assert window.quality() == {}
