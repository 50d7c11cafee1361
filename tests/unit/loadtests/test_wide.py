"""Wide data is what it says it is, its files are those that `make train` reads, and a mesh is asked about what it did not learn."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from loadtests.metrics import auc
from loadtests.wide.__main__ import main
from loadtests.wide.ask import ask
from loadtests.wide.world import BATCH_ROWS, CONTEXT_CATEGORIES, CONTEXT_NUMBERS, PLANTED, World, spec_of
from services.common.ranker.feature_spec import FeatureSpec

WORLD = World(30_000)


@pytest.fixture(scope="module")
def batch():
    (found,) = WORLD.batches()
    return found


@pytest.fixture(scope="module")
def clicks(batch):
    return (batch.shown["kind"].to_numpy(zero_copy_only=False) == "click").astype(float)


def test_thirteen_numbers_and_twenty_six_categories_of_ten_to_ten_million_values(batch):
    sizes = WORLD.sizes()
    assert len(sizes) == 26 and min(sizes.values()) == 10 and max(sizes.values()) == 10_000_000
    assert len(FeatureSpec.parse(spec_of(WORLD)).features) == 13 + 26
    assert len(CONTEXT_NUMBERS) + sum(name.startswith("m") for name in WORLD.items().column_names) == 13
    largest = [int(word[3:]) for word in batch.shown["c19"].to_pylist()]
    assert max(largest) > 5_000_000 and len(set(largest)) > 10_000
    known = 1.0 - batch.shown["n03"].null_count / len(batch.shown)
    assert known == pytest.approx(0.95, abs=0.01)


def test_clicks_come_as_often_as_the_truth_says_and_later_more_often(batch, clicks):
    assert clicks.sum() == pytest.approx(batch.truth_N.sum(), rel=0.05)
    early, late = np.split(batch.truth_N, 2)
    assert late.mean() > early.mean() + 0.01


def test_the_two_planted_categories_decide_together_and_neither_alone(batch, clicks):
    assert auc(clicks, batch.truth_N) > auc(clicks, batch.without_N) + 0.1
    request = np.asarray([int(word[3:]) % 2 for word in batch.shown[PLANTED[0]].to_pylist()])
    of_item = dict(zip(WORLD.items()["item_id"].to_pylist(), WORLD.items()[PLANTED[1]].to_pylist(), strict=True))
    item = np.asarray([int(of_item[name][3:]) % 2 for name in batch.shown["item_id"].to_pylist()])
    for sign in (request, item):  # each is of half of what is shown
        assert abs(clicks[sign == 0].mean() - clicks[sign == 1].mean()) < 0.03
    assert clicks[request == item].mean() > clicks[request != item].mean() + 0.2


def test_words_drift_from_one_half_of_a_large_category_to_the_other(batch):
    newer = np.asarray([int(word[3:]) >= 5_000_000 for word in batch.shown["c19"].to_pylist()])
    early, *_, late = np.split(newer, 10)
    assert early.mean() < 0.1 and late.mean() > 0.35


def test_the_same_world_is_made_again_and_a_longer_one_in_batches_of_bounded_memory(batch):
    assert next(World(30_000).batches()).shown.equals(batch.shown)
    assert not next(World(30_000, seed=12).batches()).shown.equals(batch.shown)
    sizes, peaks = [], []
    tracemalloc.start()
    for one in World(5 * BATCH_ROWS // 2, 1_000).batches():
        sizes.append(len(one.shown))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        del one
    tracemalloc.stop()
    assert sizes == [BATCH_ROWS, BATCH_ROWS, BATCH_ROWS // 2]
    assert peaks[1] < 1.2 * peaks[0]


def test_write_keeps_the_newest_tenth_with_its_truth_out_of_what_is_learned(tmp_path, capsys):
    assert main(["write", str(tmp_path), "--rows", "3000", "--largest", "5000", "--network", "mmoe"]) == 0
    assert "2,700 impressions; 26 categories of 10 to 5,000 values; network mmoe" in capsys.readouterr().out
    learned, last = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("impressions", "last"))
    assert (len(learned), len(last)) == (2_700, 300)
    assert {"truth", "without"}.isdisjoint(learned.column_names) and {"truth", "without"} <= set(last.column_names)
    assert learned["time"].to_pylist()[-1] < last["time"].to_pylist()[0]
    assert FeatureSpec.load(tmp_path / "spec.yaml").network.name == "mmoe"
    assert main(["write", str(tmp_path), "--rows", "3"]) == 2


class Oracle:
    """Knows the truth, but for every tenth answer."""

    def __init__(self, truth: list[float]) -> None:
        self.truth, self.asked, self.reported = truth, [], []

    def recommend(self, user_id, candidates, limit, *, context):
        self.asked.append((user_id, candidates, limit, context))
        number = len(self.asked) - 1
        scores = (0.0, self.truth[number])
        return SimpleNamespace(
            request_id=f"r{number}",
            degraded_reason="" if number % 10 else "ranker_unavailable",
            items=[SimpleNamespace(task_scores=scores)],
            task_names=("other", "interact"),
        )

    def feedback(self, feedback):
        self.reported.append(feedback)


def test_ask_compares_the_mesh_with_the_truth_and_reports_what_came(tmp_path):
    main(["write", str(tmp_path), "--rows", "3000", "--largest", "5000"])
    last = pq.read_table(tmp_path / "last.parquet")
    mesh = Oracle(last["truth"].to_pylist())
    found = ask(mesh, last)
    assert (len(found.clicks_N), found.num_degraded) == (270, 30)
    of_mesh, of_truth, without = found.aucs
    assert of_mesh == of_truth > without
    assert [one.kind for one in mesh.reported] == last["kind"].to_pylist()
    user, candidates, limit, context = mesh.asked[1]
    row = last.to_pylist()[1]
    assert (user, candidates, limit) == (row["user_id"], [row["item_id"]], 1)
    assert context == {name: row[name] for name in (*CONTEXT_NUMBERS, *CONTEXT_CATEGORIES) if row[name] is not None}
    assert "AUC of the mesh 0." in str(found) and "30 answers not whole" in str(found)
