import pytest

from tests import limits, speed


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch) -> None:
    monkeypatch.delenv(limits.SPEED_FACTOR, raising=False)


def test_limits_are_those_written_on_the_reference_machine_and_grow_with_slowness(monkeypatch) -> None:
    assert limits.seconds(60) == 60
    monkeypatch.setenv(limits.SPEED_FACTOR, "2.5")
    assert limits.seconds(60) == 150


@pytest.mark.parametrize("value", ["fast", "0.5", "nan", "inf", ""])
def test_a_factor_that_shortens_limits_is_refused(monkeypatch, value: str) -> None:
    monkeypatch.setenv(limits.SPEED_FACTOR, value)
    with pytest.raises(ValueError, match=limits.SPEED_FACTOR):
        limits.seconds(1)


@pytest.mark.parametrize(
    ("alone", "pair", "factor"),
    [
        (speed.REFERENCE_ALONE, speed.REFERENCE_PAIR, 1.0),
        (speed.REFERENCE_ALONE * 2, speed.REFERENCE_PAIR * 2, 1.0),
        (speed.REFERENCE_ALONE, speed.REFERENCE_PAIR / 2, 2.0),
        (speed.REFERENCE_ALONE / 3, speed.REFERENCE_PAIR, 3.0),
        (1.0, 1.0, speed.MAX_FACTOR),
    ],
)
def test_the_factor_is_the_worse_of_one_process_alone_and_two_at_once(alone: float, pair: float, factor: float) -> None:
    assert speed.Speed(alone, pair).factor == factor


def test_the_loop_measures_both_and_says_what_it_found() -> None:
    found = speed.measure(seconds=0.05)
    assert found.alone > 0 and found.pair > 0 and 1.0 <= found.factor <= speed.MAX_FACTOR
    assert str(found).startswith("speed factor ")
