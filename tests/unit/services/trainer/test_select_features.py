"""What features are worth: what was planted is found, and noise is told from it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from services.common.ranker import exposure_block
from services.trainer import select_features
from services.trainer.batch import FeatureStates, replay
from services.trainer.importance import Exposures, Unit, interval_by_user, units_of
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import CATEGORIES, ITEMS, KEYED, SPEC, attributes_of, interactions, with_features

pytestmark = pytest.mark.ml

FEATURES = [
    {"expr_feature": {"feature_name": "fits", "expression": "want * group", "variables": ["context:want", "item:group"]}},
    {"raw_feature": {"feature_name": "noise", "expression": "context:noise"}},
    {"expr_feature": {"feature_name": "noise_of_pair", "expression": "noise * group", "variables": ["context:noise", "item:group"]}},
]


def planted(folder: Path) -> list[str]:
    """Users want one of two groups of items at each moment, by chance: the request says it, no history does."""
    rng = np.random.default_rng(0)
    group = {f"i{item}": 1.0 if item % 2 else -1.0 for item in range(80)}
    rows = []
    for second in range(1_000):
        want = float(rng.choice((-1.0, 1.0)))
        item = rng.choice([item for item, own in group.items() if own == want])
        rows.append(
            {
                "who": f"u{rng.integers(60)}", "what": str(item), "kind": "click", "value": 1.0, "time": 1_700_000_000 + 60 * second,
                "want": want, "noise": float(rng.normal(0, 0.3)),
            }
        )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    pq.write_table(pa.table({"what": list(group), "group": list(group.values())}), folder / "items.parquet")
    spec = SPEC.model_dump(mode="json") | {"format": 2, "features": FEATURES}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    files = {"--data": "events.parquet", "--items": "items.parquet", "--spec": "spec.yaml", "--out": "made/features.json"}
    options = [text for option, name in files.items() for text in (option, str(folder / name))]
    return [*options, "--columns", "user_id=who,item_id=what"]


def test_a_planted_feature_ranks_first_and_planted_noise_is_worth_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select_features.main([*planted(tmp_path), "--permutations", "2", "--held-out", "0.15"]) == 0
    report = json.loads((tmp_path / "made" / "features.json").read_text())
    found = {row["name"]: row for row in report["features"]}
    assert (report["features"][0]["name"], report["scored"]) == ("fits", 150)
    assert found["fits"]["low"] > 0
    for name in ("noise", "noise_of_pair"):
        assert found[name]["low"] <= 0 <= found[name]["high"], found[name]
    assert {name: (row["columns"], row["bytes_an_exposure"]) for name, row in found.items() if row["declared"]} == {
        "fits": (2, 400.0), "noise": (2, 4.0), "noise_of_pair": (2, 400.0)
    }  # fmt: skip
    assert set(found) == {*SPEC.user_columns, *SPEC.item_columns, "fits", "noise", "noise_of_pair"}
    said = capsys.readouterr().out
    assert said.index("fits ") < said.index("noise ") and "150 held-out events of" in said


def test_exchanging_changes_one_feature_and_keeps_its_values() -> None:
    spec = with_features(KEYED)
    states = FeatureStates(spec, CATEGORIES, attributes_of(spec))
    config = BatchConfig()
    groups = list(replay(spec, replay_order(interactions(40), config), ITEMS, states, config, 0))
    exposures = Exposures(spec, groups)
    assert {unit.name for unit in units_of(spec)} == {*SPEC.user_columns, *SPEC.item_columns, "city", "tags", "both", "hour", "origin"}
    for unit in units_of(spec):
        changed = list(exposures.exchanged(unit, np.random.default_rng(1)))
        before, after = ([_values(spec, group, unit) for group in some] for some in (groups, changed))
        others = [
            [_values(spec, group, other) for group in some] for some in (groups, changed) for other in units_of(spec) if other != unit
        ]
        half = len(others) // 2
        assert others[:half] == others[half:], unit
        assert sorted(chain.from_iterable(before)) == sorted(chain.from_iterable(after)), unit
        assert [group.samples for group in changed] == [group.samples for group in groups]


def _values(spec, group, unit: Unit) -> list[tuple]:
    """Return what an exposure has of a unit: a tuple for the user, or for each item."""
    features = exposure_block.decode(group.features_block, spec)
    if unit.keyed is None:
        rows = features.user_U[None] if unit.is_of_user else features.items_NF
        return [tuple(row) for row in rows[:, list(unit.columns)].tolist()]
    side = features.keys.user if unit.is_of_user else features.keys.items
    starts, counts = side.starts()[:, unit.keyed], side.counts_NK[:, unit.keyed]
    return [tuple(side.keys_S[start : start + count].tolist()) for start, count in zip(starts, counts, strict=True)]


def test_the_interval_draws_users_with_all_that_is_theirs() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        of_user = rng.normal(1.0, 1.0, size=40)
        users = [f"u{user}" for user in np.repeat(np.arange(40), rng.integers(1, 20, size=40))]
        values = np.asarray([of_user[int(user[1:])] for user in users]) + rng.normal(0, 0.1, len(users))
        low, high = interval_by_user(users, values, Counter(users), seed=seed)
        covered += low <= 1.0 <= high
    assert covered >= 85, "rows taken for independent would hold the truth in half of the draws"


def test_events_that_were_not_kept_count_and_few_users_have_no_interval() -> None:
    users = [f"u{number}" for number in range(10)]
    whole = interval_by_user(users, np.ones(10), dict.fromkeys(users, 1), seed=0)
    thinned = interval_by_user(users, np.ones(10), dict.fromkeys(users, 5), seed=0)
    assert whole == (1.0, 1.0) and thinned == (0.2, 0.2)
    # Whose events were none of them kept draws the mean down as well.
    low, high = interval_by_user(users[:5], np.ones(5), dict.fromkeys(users, 1), seed=0)
    assert low < 0.5 < high
    assert interval_by_user(users[:1] * 10, np.ones(10), {"u0": 10}, seed=0) is None


def test_thinned_impressions_are_divided_by_what_they_stand_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "user_id": f"u{rng.integers(30)}",
            "item_id": f"i{rng.integers(20)}",
            "kind": kind,
            "value": 1.0,
            "time": 1_700_000_000 + 60 * second,
        }
        for second, kind in enumerate(rng.choice(["impression", "click"], p=[0.9, 0.1], size=1_500))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    losses = {}
    for keep_rate in (1.0, 0.2):
        raw = SPEC.model_dump(mode="json") | {"format": 2, "negatives": {"keep_rate": keep_rate, "source": "impressions"}}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw))
        files = {"--data": tmp_path / "events.parquet", "--spec": tmp_path / "spec.yaml", "--out": tmp_path / f"{keep_rate}.json"}
        options = [text for option, path in files.items() for text in (option, str(path))]
        assert select_features.main([*options, "--permutations", "1", "--answer-window-seconds", "0"]) == 0
        report = json.loads((tmp_path / f"{keep_rate}.json").read_text())
        assert report["scored"] == 300
        losses[keep_rate] = report["loss"]
    # Divided by those that were kept it would be three times as large.
    assert losses[0.2] == pytest.approx(losses[1.0], rel=0.5)


def test_a_folder_is_no_place_for_the_report_and_that_is_said_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select_features.main(["--data", "nowhere.csv", "--spec", "nowhere.yaml", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} is a folder; name the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"), [(["--held-out", "0"], "--held-out must be in (0, 1)"), (["--permutations", "0"], "at least 1")]
)
def test_options_that_say_nothing_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert select_features.main(["--data", "x", "--spec", "x", "--out", "x", *options]) == 2
    assert said in capsys.readouterr().err
