"""The Open Bandit logs become files that `make train` reads, and a mesh is asked about what stood first."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loadtests.open_bandit.__main__ import main
from loadtests.open_bandit.ask import Asked, ask
from loadtests.open_bandit.logs import impressions, items
from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions

HEAD = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3"
AFFINITIES = ",".join(f"user-item_affinity_{item}" for item in range(3))
ITEMS = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n0,0,-0.5,aa,bb,cc\n1,1,0.25,aa,dd,cc\n2,2,1.5,ee,dd,ff\n"


def row(number: int, second: int, item: int, position: int, click: int, user: str, affinities: str = "0.0,0.0,0.0") -> str:
    features = ",".join(f"{user}{place}" * 8 for place in range(4))
    return f"{number},2019-11-24 00:00:{second:02d}.004101+00:00,{item},{position},{click},0.0125,{features},{affinities}"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """What of the wheel is read, in its form; as many items as in a shop of three."""
    logs = {
        "random": [row(0, 2, 1, 3, 0, "a"), row(1, 40, 2, 1, 1, "b", "0.0,2.5,1.0")],
        "bts": [row(0, 1, 0, 1, 0, "a"), row(1, 30, 2, 1, 0, "b"), row(2, 50, 1, 2, 1, "a")],
    }
    path = tmp_path / "obp.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for policy, rows in logs.items():
            archive.writestr(f"obp/dataset/obd/{policy}/all/all.csv", "\n".join([f"{HEAD},{AFFINITIES}", *rows]) + "\n")
        archive.writestr("obp/dataset/obd/random/all/item_context.csv", ITEMS)
    return path


def test_impressions_of_both_policies_in_the_order_of_time_with_what_the_logs_know(wheel):
    rows = impressions(wheel).to_pylist()
    assert [(one["item_id"], one["kind"], one["position"]) for one in rows] == [
        ("0", "impression", 1),
        ("1", "impression", 3),
        ("2", "impression", 1),
        ("2", "click", 1),
        ("1", "click", 2),
    ]
    assert rows[3]["user_id"] == "b0b0b0-b1b1b1-b2b2b2-b3b3b3" and rows[3]["user_feature_2"] == "b2" * 8
    assert rows[3]["affinity"] == ["1:2.5", "2:1"] and rows[0]["affinity"] == []
    assert items(wheel).to_pylist()[1] == {
        "item_id": "1", "key": "1", "item_feature_0": 0.25, "item_feature_1": "aa", "item_feature_2": "dd", "item_feature_3": "cc",
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, b"no archive", {"obp/dataset/other.csv": ""}])
def test_another_file_than_the_wheel_is_refused_by_name(tmp_path, content, capsys):
    path = tmp_path / "some.whl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    with pytest.raises(ConfigurationError, match=r"some\.whl: it is not the wheel of obp 0\.4\.1"):
        impressions(path)
    assert main(["write", str(tmp_path / "out"), "--wheel", str(path)]) == 2 and "some.whl" in capsys.readouterr().err


def test_the_files_are_read_as_impressions_with_places_under_the_spec_beside_them(wheel, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["write", str(folder), "--wheel", str(wheel)]) == 0
    assert "impressions.parquet: 5 rows" in capsys.readouterr().out
    options = ReadOptions(items=str(folder / "items.parquet"), answer_window_ms=0)
    history = read_history(str(folder / "impressions.parquet"), FeatureSpec.load(folder / "spec.yaml"), options)
    seen = list(history.interactions)
    assert [(one.item_id, one.kind, one.position) for one in seen][3:] == [("2", "click", 1), ("1", "click", 2)]
    assert seen[3].context["affinity"] == ["1:2.5", "2:1"]


class Mesh:
    """Says of each item that it is clicked on one time in four; its third answer is not whole."""

    def __init__(self):
        self.asked, self.told = [], []

    def recommend(self, user_id, candidates, limit, *, context):
        self.asked.append((user_id, candidates, limit, context))
        reason = "ranker_unavailable" if len(self.asked) == 3 else ""
        number = len(self.asked)
        scores = () if reason else (0.25,)
        item = SimpleNamespace(item_id=candidates[0], task_scores=scores)
        return SimpleNamespace(
            request_id=f"r{number}", items=[item], task_names=("interact",), model_version=f"1.{number}", degraded_reason=reason
        )

    def feedback(self, feedback):
        self.told.append((feedback.request_id, feedback.kind, feedback.item_id))


def test_what_stood_first_is_asked_about_with_its_context_and_reported(wheel):
    mesh = Mesh()
    found = ask(mesh, impressions(wheel), 1.0)
    assert [candidates for _, candidates, _, _ in mesh.asked] == [["0"], ["2"], ["2"]]
    assert mesh.asked[2][3]["affinity"] == ["1:2.5", "2:1"] and mesh.asked[2][3]["user_feature_0"] == "b0" * 8
    assert mesh.told == [("r1", "impression", "0"), ("r2", "impression", "2"), ("r3", "click", "2")]
    assert (found.num_degraded, found.probabilities_N.tolist(), found.clicks_N.tolist()) == (1, [0.25, 0.25], [0.0, 0.0])
    assert ask(Mesh(), impressions(wheel), 0.4).clicks_N.tolist() == [1.0], "of the last two, one stood first"


def test_predicted_and_observed_clicks_are_compared_with_an_interval():
    draw = np.random.default_rng(5)
    clicks = draw.permutation(np.arange(4_000) % 10 == 0).astype(np.float64)
    users = draw.integers(0, 200, 4_000)
    said = str(Asked(np.full(4_000, 0.1), clicks, users, 7, "1.2", "1.9"))
    assert "4,000 impressions" in said and "400.0 predicted" in said and "7 answers not whole" in said
    low, high = (float(end) for end in said[said.index("[") + 1 : said.index("]")].split(", "))
    assert 0.8 < low < 1.0 < high < 1.25
    assert "too few users" in str(Asked(np.full(2, 0.1), np.ones(2), np.arange(2), 0, "1.2", "1.2"))
