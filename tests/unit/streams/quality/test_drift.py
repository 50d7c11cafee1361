import numpy as np
import pytest

from streams.quality.drift import Drift, Rows

NAMES = {"scores": ("scores",), "user": ("user.a", "user.b")}


def drift(**changes) -> Drift:
    settings = {"schema_hash": "h", "num_windows": 2, "num_bins": 10, "limit": 0.25, "max_references": 2}
    return Drift(NAMES, **(settings | changes))


def rows(generator: np.random.Generator, *, shift: float = 0.0, requests: int = 200) -> Rows:
    made = Rows()
    for _ in range(requests):
        made.add("scores", generator.normal(shift, size=5).astype(np.float32), 5_000)
        made.add("user", generator.normal(size=(1, 2)).astype(np.float32), 5_000)
    return made


def test_the_first_windows_are_the_reference_and_later_ones_are_compared_with_it() -> None:
    generator, watched = np.random.default_rng(0), drift()
    assert watched.compare("recommend", "a", rows(generator), 200) == {}
    assert watched.compare("recommend", "a", rows(generator), 200) == {}
    assert watched.num_completed == 1
    same = watched.compare("recommend", "a", rows(generator), 200)
    assert set(same) == {"scores", "user.a", "user.b"}
    assert all(value < limit for value, limit in same.values())
    moved = watched.compare("recommend", "a", rows(generator, shift=1.0), 200)
    assert [name for name, (value, limit) in moved.items() if value > limit] == ["scores"]


def test_chance_counts_the_requests_that_gave_values_and_not_those_that_had_none() -> None:
    generator, watched = np.random.default_rng(0), drift(num_windows=1)
    watched.compare("recommend", "a", rows(generator), 200)
    limits = [watched.compare("recommend", "a", rows(generator, requests=5), asked)["scores"][1] for asked in (200, 5)]
    assert limits[0] == limits[1] > 1.0


def test_each_variant_has_a_reference_of_its_own_up_to_a_number() -> None:
    generator, watched = np.random.default_rng(0), drift(num_windows=1)
    for variant in ("a", "b", "c"):
        watched.compare("recommend", variant, rows(generator), 200)
    assert watched.num_completed == 2
    assert watched.compare("recommend", "b", rows(generator), 200)
    assert watched.compare("recommend", "c", rows(generator), 200) == {}


def test_a_variant_that_is_long_gone_gives_its_place_to_another() -> None:
    generator, watched = np.random.default_rng(0), drift(num_windows=1)
    for variant in ("a", "b", "c"):
        watched.compare("recommend", variant, rows(generator), 200)
    assert watched.num_left_out == 1
    for window in range(360):
        watched.end_window()
        if window < 359:
            assert watched.compare("recommend", "c", rows(generator, requests=1), 1) == {}
            assert (watched.num_left_out, bool(watched.compare("recommend", "b", rows(generator, requests=1), 1))) == (1, True)
    watched.compare("recommend", "c", rows(generator), 200)
    assert (watched.num_left_out, watched.num_completed) == (0, 3)
    assert watched.compare("recommend", "c", rows(generator), 200) and watched.compare("recommend", "b", rows(generator), 200)
    assert watched.compare("recommend", "a", rows(generator), 200) == {}
    assert watched.num_left_out == 1


def test_a_saved_reference_is_used_at_once_and_one_of_another_feature_spec_is_refused() -> None:
    generator, first = np.random.default_rng(0), drift(num_windows=1)
    first.compare("recommend", "a", rows(generator), 200)
    second = drift()
    assert second.load(first.to_json()) == 1
    assert second.compare("recommend", "a", rows(generator), 200)
    with pytest.raises(ValueError, match="feature spec"):
        drift(schema_hash="other").load(first.to_json())
    for nonsense in ([], {}, {"format": 1, "schema_hash": "h", "references": {"x": {}}}):
        with pytest.raises(ValueError):
            drift().load(nonsense)


def test_a_window_keeps_twenty_rows_of_a_request_and_stops_at_its_limit() -> None:
    made = Rows()
    for _ in range(3):
        made.add("scores", np.zeros(100, np.float32), 30)
    assert len(made.columns(NAMES)["scores"]) == 40
    assert "user.a" not in made.columns(NAMES)


def test_values_that_are_no_numbers_are_in_no_reference() -> None:
    watched, made = drift(num_windows=1), Rows()
    made.add("scores", np.array([np.nan, 1.0, np.inf], np.float32), 100)
    watched.compare("recommend", "a", made, 20)
    assert watched.to_json()["references"]["recommend/a"]["features"]["scores"]["counts"] == [0, 1, 0]
