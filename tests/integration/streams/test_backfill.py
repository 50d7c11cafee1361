"""Loading a base's feature states into a real Redis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from services.common.platform.artifacts import Manifest, write_artifact
from services.common.ranker.feature_records import BASE_PARTIAL, global_key, item_key, pack_records, popular_key, seen_key, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import pack_counts, pack_ids, unpack_popular
from services.common.ranker.spec_description import SCHEMA_ARRAY, described
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from streams.features.backfill import main
from tests import old_states
from tests.integration.streams.traffic import SPEC, SPEC_PATH

pytestmark = pytest.mark.integration
ACT = Interaction("u1", "42", "rating", 5.0, 1)


def states() -> tuple[UserState, ItemState, GlobalState]:
    user, item, whole = UserState(), ItemState(), GlobalState()
    user.apply(SPEC, ACT, ("drama",), -1)
    item.apply(SPEC, ACT, 1.0, -1)
    whole.apply(SPEC, ACT, ("drama",), -1)
    return user, item, whole


def write_base(
    folder: Path, *, schema_hash: str = SPEC.schema_hash, with_features: bool = True, description: FeatureSpec | None = None
) -> str:
    user, item, whole = states()
    if description is not None:
        item = ItemState()
        item.apply(description, ACT, 1.0, -1)
    records = [
        (user_key("u1"), user.to_bytes()),
        (user_key("u2"), user.to_bytes()),
        (seen_key("u1"), pack_ids(["42", "43"])),
        (item_key("42", BASE_PARTIAL), item.to_bytes(SPEC) if description is None else old_states.item_bytes(item)),
        (popular_key(BASE_PARTIAL), pack_counts([("42", 1.0)])),
        (global_key(BASE_PARTIAL), whole.to_bytes()),
    ]
    arrays = {f"features/{name}": array for name, array in pack_records(records).items()} if with_features else {}
    manifest = Manifest(kind="base", model="ranker", schema_hash=schema_hash, lineage_id="l", epoch=0, seq=0)
    about = {} if description is None else {SCHEMA_ARRAY: described(description)}
    write_artifact(folder, manifest, {"dense/w": np.zeros(1, np.float32), **about, **arrays})
    return str(folder)


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("TUNEMESH_FEATURE_SPEC", str(SPEC_PATH))


def test_a_base_is_loaded_and_loading_it_again_undoes_nothing(tmp_path, redis_url, capsys) -> None:
    user, item, whole = states()
    base = write_base(tmp_path / "base")
    with Redis.from_url(redis_url) as redis:
        redis.set(user_key("u2"), b"a state that has gone on")
        assert main(["--base", base]) == 0
        assert "5 keys written, 1 user states kept" in capsys.readouterr().out
        assert redis.get(user_key("u1")) == user.to_bytes()
        assert redis.get(user_key("u2")) == b"a state that has gone on"
        assert redis.smembers(seen_key("u1")) == {b"42", b"43"}
        assert redis.get(item_key("42", BASE_PARTIAL)) == item.to_bytes(SPEC)
        assert redis.get(global_key(BASE_PARTIAL)) == whole.to_bytes()
        redis.set(user_key("u1"), b"gone on")
        assert main(["--base", base]) == 0
        assert redis.get(user_key("u1")) == b"gone on"


def spec_with(**changes: object) -> FeatureSpec:
    return FeatureSpec.parse(SPEC.model_dump(mode="json") | changes)


@pytest.mark.parametrize("half_lives", [[500], [500, 5000, 70_000], [100, 700]])
def test_a_base_of_other_half_lives_is_translated(tmp_path, redis_url, half_lives) -> None:
    other = spec_with(counters={"half_lives_events": half_lives})
    user, item, whole = states()
    assert main(["--base", write_base(tmp_path / "base", schema_hash=other.schema_hash, description=other)]) == 0
    with Redis.from_url(redis_url) as redis:
        assert redis.get(user_key("u1")) == user.to_bytes()
        assert redis.get(global_key(BASE_PARTIAL)) == whole.to_bytes()
        got = ItemState.from_bytes(SPEC, redis.get(item_key("42", BASE_PARTIAL)))
        assert (got.tally, len(got.decayed)) == (item.tally, 2)
        assert got.decayed[0].acts == pytest.approx(1.0, rel=0.01)
        [(item_id, count)] = unpack_popular(redis.get(popular_key(BASE_PARTIAL)), SPEC.counters.half_lives_events[0], 1.0)
        assert (item_id, count) == ("42", pytest.approx(1.0, rel=0.01))


def test_a_base_whose_states_mean_something_else_is_refused(tmp_path, redis_url, capsys) -> None:
    kinds = SPEC.model_dump(mode="json")["kinds"]
    other = spec_with(kinds=kinds | {"rating": {"value_range": [1, 10]}})
    assert main(["--base", write_base(tmp_path / "base", schema_hash=other.schema_hash, description=other)]) == 1
    assert "its states mean something else: kinds.rating was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"), [({"schema_hash": "0" * 16}, "schema"), ({"with_features": False}, "holds no feature states")]
)
def test_a_base_that_does_not_fit_is_refused_with_its_reason(tmp_path, capsys, redis_url, changes, said) -> None:
    assert main(["--base", write_base(tmp_path / "base", **changes)]) == 1
    assert said in capsys.readouterr().err
    with Redis.from_url(redis_url) as redis:
        assert redis.dbsize() == 0


def test_a_base_or_a_redis_that_is_not_there_is_said_in_one_line(tmp_path, capsys, monkeypatch) -> None:
    assert main(["--base", str(tmp_path / "nowhere")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    base = write_base(tmp_path / "base")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["--base", base]) == 1
    assert "Redis (REDIS_URL) does not answer" in capsys.readouterr().err
    monkeypatch.setenv("REDIS_URL", "no url")
    assert main(["--base", base]) == 2
    assert "REDIS_URL" in capsys.readouterr().err
