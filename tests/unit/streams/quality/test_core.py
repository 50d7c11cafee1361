import numpy as np
import pytest

from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner.environments import REPOSITORY_ROOT
from streams.quality.codec import column_names
from streams.quality.core import Act, Alarm, Generated, Key, Quality, Recommended, Replica, Window, over_at
from streams.quality.drift import Drift
from streams.quality.settings import QualitySettings

SPEC = FeatureSpec.load(REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml")
NAMES = column_names(SPEC)
A = Key("recommend", "a", "3")
MESH = Key("mesh", "", "")


def quality(**changes) -> Quality:
    settings = QualitySettings(**({"reference_windows": 1, "min_requests": 4} | changes))
    drift = Drift(NAMES, schema_hash="h", num_windows=settings.reference_windows, num_bins=10, limit=0.25, max_references=8)
    return Quality(SPEC, drift, settings)


def shown(number: int, *, variant: str = "a", version: str = "3", degraded: bool = False, score: float = 0.5, shift: float = 0.0):
    generator = np.random.default_rng(number)
    return Recommended(
        request_id=f"{variant}-{number}",
        variant=variant,
        model_version=version,
        is_degraded=degraded,
        scores=[score] * 3,
        user_U=generator.normal(shift, size=len(NAMES["user"])).astype(np.float32),
        items_NF=generator.normal(size=(3, len(NAMES["item"]))).astype(np.float32),
    )


def answered(number: int, **changes) -> Generated:
    fields = {
        "request_id": f"g-{number}",
        "variant": "default",
        "model_version": "base",
        "is_degraded": False,
        "finish_reason": "stop",
        "ttft_ms": 100.0 + number,
        "generating_ms": 500.0,
        "prompt_tokens": 50,
        "completion_tokens": 10,
    }
    return Generated(**(fields | changes))


def act(request_id: str, kind: str = "rating", value: float = 5.0, item_id: str = "1") -> Act:
    return Act(request_id=request_id, item_id=item_id, kind=kind, value=value)


def close(reducer: Quality, now_ms: int = 10_000) -> dict[Key, Window]:
    return {window.key: window for window in reducer.close(now_ms - 10_000, now_ms)}


def names(alarms: list[Alarm]) -> list[str]:
    return [alarm.name for alarm in alarms]


def test_requests_and_feedback_are_counted_per_variant_and_version() -> None:
    reducer = quality()
    for number in range(2):
        reducer.recommended(shown(number))
    reducer.recommended(shown(0, variant="b", version="4", degraded=True, score=0.1))
    reducer.acted(act("a-0", value=5.0))
    reducer.acted(act("a-1", value=2.0))
    reducer.acted(act("b-0", kind="click", value=1.0))
    windows = close(reducer)
    assert set(windows) == {A, Key("recommend", "b", "4"), MESH}
    a, b = windows[A].metrics, windows[Key("recommend", "b", "4")].metrics
    assert a == {"requests": 2, "feedback": 2, "degraded_ratio": 0.0, "feedback_rate": 1.0, "positive_rate": 0.5, "mean_score": 0.5}
    assert (b["degraded_ratio"], b["positive_rate"], b["mean_score"]) == (1.0, 1.0, pytest.approx(0.1))
    assert (windows[A].start_ms, windows[A].end_ms) == (0, 10_000)
    assert set(close(reducer)) == {MESH}


def test_impressions_are_a_number_of_their_own_and_no_acts() -> None:
    reducer = quality()
    reducer.recommended(shown(0))
    reducer.acted(act("a-0"))
    for item_id in ("1", "2", "3"):
        reducer.acted(act("a-0", kind="impression", value=1.0, item_id=item_id))
    metrics = next(window for key, window in close(reducer).items() if key.kind == "recommend").metrics
    assert (metrics["impressions"], metrics["feedback"], metrics["feedback_rate"], metrics["positive_rate"]) == (3, 1, 1, 1)


def test_feedback_of_a_later_window_still_finds_the_variant_of_its_request() -> None:
    reducer = quality()
    reducer.recommended(shown(0))
    close(reducer)
    reducer.acted(act("a-0"))
    assert close(reducer)[A].metrics == {"requests": 0, "feedback": 1, "positive_rate": 1.0}


def test_feedback_that_comes_before_its_request_waits_for_it_until_the_next_window() -> None:
    reducer = quality()
    reducer.acted(act("a-0"))
    reducer.acted(act("a-1"))
    reducer.acted(act("nobody's"))
    reducer.recommended(shown(0))
    first = close(reducer)
    assert (first[A].metrics["feedback"], first[MESH].metrics["feedback"]) == (1, 3)
    assert "unmatched_feedback" not in first[MESH].metrics
    reducer.recommended(shown(1))
    second = close(reducer)
    assert (second[A].metrics["feedback"], second[MESH].metrics["unmatched_feedback"]) == (1, 1)
    assert "unmatched_feedback" not in close(reducer)[MESH].metrics


def test_the_memory_of_requests_is_bounded_and_forgets_the_oldest() -> None:
    reducer = quality(remembered_requests=2)
    for number in range(3):
        reducer.recommended(shown(number))
    close(reducer)
    for number in range(3):
        reducer.acted(act(f"a-{number}"))
    assert close(reducer)[A].metrics["feedback"] == 2
    assert close(reducer)[MESH].metrics["unmatched_feedback"] == 1


def test_the_second_record_of_a_request_and_requests_from_before_the_start_are_not_counted() -> None:
    reducer = quality()
    reducer.remember("a-9", "recommend", "a", "3")
    for _ in range(2):
        reducer.recommended(shown(0))
    reducer.acted(act("a-9"))
    metrics = close(reducer)[A].metrics
    assert (metrics["requests"], metrics["feedback"]) == (1, 1)


def test_answers_have_their_own_numbers() -> None:
    reducer = quality()
    for number in range(4):
        reducer.generated(
            answered(number, finish_reason="error" if number == 3 else "stop", ttft_ms=None if number == 3 else 100.0 + number)
        )
    for number, (kind, value) in enumerate([("boolean", 1.0), ("boolean", 0.0), ("score", 0.8), ("comment", 0.0), ("demonstration", 0.0)]):
        reducer.acted(act(f"g-{number % 4}", kind=kind, value=value, item_id=""))
    metrics = close(reducer)[Key("generate", "default", "base")].metrics
    assert (metrics["requests"], metrics["feedback"], metrics["feedback_rate"]) == (4, 5, 1.25)
    assert (metrics["thumbs_up_rate"], metrics["mean_score"]) == (0.5, 0.8)
    assert (metrics["feedback.comment"], metrics["feedback.demonstration"]) == (1, 1)
    assert (metrics["ttft_p50_ms"], metrics["error_ratio"], metrics["cancelled_ratio"]) == (101.0, 0.25, 0.0)
    assert metrics["tokens_per_s"] == pytest.approx(20.0)
    assert "positive_rate" not in metrics


def test_further_series_are_summed_as_another_version() -> None:
    reducer = quality(max_series=1)
    for variant in ("a", "b", "c"):
        reducer.recommended(shown(0, variant=variant))
    windows = close(reducer)
    assert windows[Key("recommend", "", "other")].metrics["requests"] == 2
    assert windows[A].metrics["requests"] == 1


def test_a_distribution_that_moves_is_one_alarm_that_names_it() -> None:
    reducer = quality()
    for number in range(400):
        reducer.recommended(shown(number))
    assert not any(name.startswith("psi.") for name in close(reducer)[A].metrics)
    for number in range(400, 800):
        reducer.recommended(shown(number))
    same = close(reducer)[A]
    assert same.alarms == [] and same.metrics["psi.user.mean"] < 0.25
    for number in range(800, 1200):
        reducer.recommended(shown(number, shift=2.0))
    (alarm,) = close(reducer)[A].alarms
    assert alarm.name == "drift" and alarm.value > alarm.limit >= 0.25 and "user." in alarm.detail


def test_few_requests_give_neither_drift_nor_a_ratio_alarm() -> None:
    reducer = quality()
    for number in range(3):
        reducer.recommended(shown(number, degraded=True))
    assert close(reducer)[A].alarms == []
    for number in range(3, 7):
        reducer.recommended(shown(number, degraded=True))
    assert names(close(reducer)[A].alarms) == ["degraded"]


def test_orphans_are_an_alarm_and_notes_about_letters_are_no_letters() -> None:
    reducer = quality()
    for number in range(10):
        reducer.acted(act(f"r{number}"))
    for reason in ("orphan", "malformed", "redriven", "redrive_claimed"):
        reducer.died("feedback.v1", reason)
    window = close(reducer)[MESH]
    assert window.metrics["orphan_ratio"] == pytest.approx(0.1)
    assert window.metrics["dead_letters"] == 2
    assert window.metrics["dead_letters.feedback.v1.orphan"] == 1
    assert names(window.alarms) == ["orphans"]


def test_orphans_are_compared_with_the_feedback_of_the_time_in_which_they_came() -> None:
    reducer = quality(orphan_span_ms=60_000)
    for number in range(10):
        reducer.acted(act(f"r{number}"))
    assert close(reducer, 10_000)[MESH].metrics["orphan_ratio"] == 0.0
    for now_ms, orphans, ratio in [(50_000, 2, 0.2), (60_000, 1, 0.3), (70_000, 0, None)]:
        for _ in range(orphans):
            reducer.died("feedback.v1", "orphan")
        window = close(reducer, now_ms)[MESH]
        assert window.metrics.get("orphan_ratio") == (None if ratio is None else pytest.approx(ratio))
        assert names(window.alarms) == ([] if ratio is None else ["orphans"])


@pytest.mark.parametrize(
    ("deltas", "alarms"),
    [
        ([(32, 0.5), (32, 0.0)], []),
        ([(32, 0.0), (16, 0.0)], ["zero_gradient"]),
        ([(0, 0.0)], []),
        ([(32, float("nan"))], ["zero_gradient"]),
        ([], []),
    ],
)
def test_samples_without_a_gradient_are_an_alarm(deltas, alarms) -> None:
    reducer = quality()
    for samples, norm in deltas:
        reducer.learned(samples, norm)
    assert names(close(reducer)[MESH].alarms) == alarms


def test_the_age_of_each_replica_is_told_and_an_old_one_is_an_alarm() -> None:
    reducer = quality(watermark_limit_ms=5_000, forget_replica_ms=60_000)
    reducer.reported("fresh", Replica(99_000, 99_500))
    reducer.reported("old", Replica(90_000, 99_000))
    reducer.reported("old", Replica(80_000, 98_000))  # came late
    reducer.reported("gone", Replica(30_000, 30_000))
    reducer.reported("unborn", Replica(0, 99_000))
    window = close(reducer, 100_000)[MESH]
    assert window.metrics["watermark_age_ms"] == window.metrics["watermark_age_ms.old"] == 10_000
    assert window.metrics["watermark_age_ms.fresh"] == 1_000
    assert window.metrics["replicas"] == 3
    assert names(window.alarms) == ["watermark_old"] and "replica old" in window.alarms[0].detail


@pytest.mark.parametrize(
    ("now_ms", "over"),
    [(10_000, None), (19_999, None), (20_000, (10_000, 20_000)), (45_000, (10_000, 40_000)), (5_500, (-10_000, 0))],
)
def test_a_window_is_over_at_its_end_and_when_the_clock_was_put_back(now_ms, over) -> None:
    assert over_at(now_ms, 20_000, 10_000) == over
