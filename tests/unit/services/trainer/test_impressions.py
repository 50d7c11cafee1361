"""Files that say what was seen: impressions are the negatives, in place of drawn ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer import train
from services.trainer.batch import FeatureStates, replay
from services.trainer.event_files import impressions
from services.trainer.event_files.history import History, read_history
from services.trainer.event_files.ordered import Run
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.stored import StoredEvents
from services.trainer.replay_order import BatchConfig, replay_order
from tests.small_batches import shrink

pytestmark = pytest.mark.ml

T_S = 1_700_000_000
SHOWN = {
    "format": 2,
    "model": "ranker",
    "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
    "kinds": {"click": {}, "buy": {}},
    "tasks": [{"name": "interact", "labels": {"click": 1, "buy": 1}, "unanswered": 0}, {"name": "want", "labels": {"buy": 1}}],
    "negatives": {"source": "impressions", "keep_rate": 1.0},
    "blend": {"interact": 1.0},
    "features": [{"id_feature": {"feature_name": "page", "expression": "context:page", "vocab_list": ["home", "search"]}}],
}
SPEC = FeatureSpec.parse(SHOWN)


def written(folder: Path, rows: list[dict[str, Any]], name: str = "events.parquet") -> Path:
    path = folder / name
    pd.DataFrame(rows).to_parquet(path)
    return path


def row(kind: str, second: float, user: str = "u", item: str = "i", page: str | None = None) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "kind": kind, "time": pd.Timestamp(T_S + second, unit="s"), "page": page}


def read(folder: Path, rows: list[dict[str, Any]], window_s: float = 60.0) -> History:
    return read_history(written(folder, rows), SPEC, ReadOptions(answer_window_ms=round(window_s * 1e3)))


def told(history: History) -> list[tuple[str, int, Any]]:
    return [(one.kind, one.time_ms // 1000 - T_S, one.context.get("page")) for one in history.interactions]


def test_a_row_that_says_what_became_of_it_is_one_event(tmp_path: Path) -> None:
    history = read(tmp_path, [row("impression", 0, page="home"), row("click", 1, item="j", page="home"), row("impression", 2, item="k")])
    assert told(history) == [("impression", 0, "home"), ("click", 1, "home"), ("impression", 2, None)]
    assert not any("left out" in note for note in history.notes)


def test_an_act_stands_for_the_impression_that_it_answers_and_knows_what_that_knew(tmp_path: Path) -> None:
    rows = [row("impression", 0, page="home"), row("click", 60), row("buy", 60.5), row("impression", 100, page="search"), row("buy", 161)]
    history = read(tmp_path, rows)
    # The purchase half a second later is beyond the window of what was seen; so is the last one.
    assert told(history) == [("click", 60, "home"), ("buy", 60, None), ("impression", 100, "search"), ("buy", 161, None)]
    assert "1 impressions are left out: an act of the same user and item answers each of them within 60 s" in history.notes


def test_a_second_act_knows_it_too_and_what_an_act_says_itself_counts(tmp_path: Path) -> None:
    rows = [
        row("impression", 0, page="home"),
        row("click", 1),
        row("buy", 2, page="search"),
        row("buy", 3, user="v"),
        row("buy", 4, item="j"),
    ]
    assert told(read(tmp_path, rows)) == [("click", 1, "home"), ("buy", 2, "search"), ("buy", 3, None), ("buy", 4, None)]


def test_whether_acts_have_rows_of_their_own_is_not_guessed(tmp_path: Path) -> None:
    rows = [row("impression", 0, page="home"), row("click", 60)]
    with pytest.raises(
        EventFileError, match=r"1 impressions are followed by an act of the same user and item within 660 s.*seconds 660.*0$"
    ):
        read_history(written(tmp_path, rows), SPEC)
    assert told(read(tmp_path, rows, 0.0)) == [("impression", 0, "home"), ("click", 60, None)]
    apart = [row("impression", 0, page="home"), row("click", 661), row("impression", 700)]
    assert len(read_history(written(tmp_path, apart), SPEC).interactions) == 3


def test_an_act_answers_the_latest_impression_only(tmp_path: Path) -> None:
    rows = [row("impression", 0, page="home"), row("impression", 5, page="search"), row("click", 6)]
    assert told(read(tmp_path, rows)) == [("impression", 0, "home"), ("click", 6, "search")]


def test_events_on_disk_give_what_events_in_memory_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    kinds, pages = ["impression"] * 6 + ["click", "buy"], ["home", "search", None]
    rows = [
        row(kinds[rng.integers(8)], int(rng.integers(900)), f"u{rng.integers(4)}", f"i{rng.integers(5)}", pages[rng.integers(3)])
        for _ in range(400)
    ]
    in_memory = read(tmp_path, rows)
    shrink(monkeypatch, rows=7, text_bytes=200)
    on_disk = read(tmp_path, rows)
    assert isinstance(on_disk.interactions, StoredEvents)
    assert on_disk.interactions == list(in_memory.interactions) and on_disk.notes == in_memory.notes
    assert list(in_memory.interactions) == expected(rows, 60) and len(in_memory.interactions) < 400


def expected(rows: list[dict[str, Any]], window_s: int) -> list[Interaction]:
    """Return the events by the rule, looking at every pair of rows."""
    order = sorted(rows, key=lambda one: one["time"])
    answered, contexts = set(), [one["page"] for one in order]
    for at, act in enumerate(order):
        if act["kind"] == "impression":
            continue
        seen = [
            earlier
            for earlier in range(at)
            if order[earlier]["kind"] == "impression"
            and all(order[earlier][key] == act[key] for key in ("user_id", "item_id"))
            and (act["time"] - order[earlier]["time"]).total_seconds() <= window_s
        ]
        if seen:
            answered.add(seen[-1])
            contexts[at] = act["page"] or order[seen[-1]]["page"]
    return [
        Interaction(one["user_id"], one["item_id"], one["kind"], 1.0, int(one["time"].timestamp()) * 1000, {"page": page} if page else {})
        for at, (one, page) in enumerate(zip(order, contexts, strict=True))
        if at not in answered
    ]


def test_what_is_remembered_does_not_grow_with_the_file() -> None:
    count = 20_000
    columns = {
        "user": pa.array(np.zeros(count, np.int32)),
        "item": pa.array(np.arange(count, dtype=np.int32)),
        "kind": pa.array(np.zeros(count, np.int32)),
        "time_ms": pa.array(np.arange(count, dtype=np.int64) * 1000),
    }
    page = pa.RecordBatch.from_pydict(columns)
    walk = impressions._Walk(0, 10_000)
    assert list(walk.acts(page)) == [] and len(walk._seen) == len(walk._oldest) == 11
    run = Run(page.schema, [count], None, [page])
    assert len(impressions.answered(run, 0, 10_000)) == 0


def test_impressions_are_refused_where_the_spec_does_not_ask_for_them(tmp_path: Path) -> None:
    spec = FeatureSpec.parse(SHOWN | {"negatives": {}})
    with pytest.raises(EventFileError, match=r"row 2: 'impression' says that an item was seen.*negatives: \{source: impressions\}"):
        read_history(written(tmp_path, [row("click", 0), row("impression", 1)]), spec)


def groups_of(spec: FeatureSpec, acts: list[Interaction]) -> tuple[list[Any], FeatureStates]:
    states = FeatureStates(spec, {one.item_id: () for one in acts})
    config = BatchConfig(feature_lag_s=0.0)
    return list(replay(spec, replay_order(acts, config), list({one.item_id for one in acts}), states, config, 0)), states


def test_nothing_is_drawn_and_an_impression_is_a_negative_that_no_state_counts() -> None:
    acts = [Interaction("u", f"i{number}", "click" if number % 10 == 0 else "impression", 1.0, 1000 * number) for number in range(200)]
    groups, states = groups_of(SPEC, acts)
    assert [len(group.samples) for group in groups] == [1] * 200
    samples = [group.samples[0] for group in groups]
    assert [[(label.task, label.value) for label in one.labels] for one in samples[:2]] == [[("interact", 1.0)], [("interact", 0.0)]]
    assert {(one.revision, one.keep_rate) for one in samples} == {(0, 1.0), (1, 1.0)}
    _, of_acts_alone = groups_of(SPEC, acts[::10])
    assert dict(states.records()) == dict(of_acts_alone.records())


def test_of_impressions_as_many_are_kept_as_the_spec_says() -> None:
    spec = FeatureSpec.parse(SHOWN | {"negatives": {"source": "impressions", "keep_rate": 0.2}})
    groups, _ = groups_of(spec, [Interaction("u", f"i{number % 50}", "impression", 1.0, 1000 * number) for number in range(2_000)])
    kept = sum(len(group.samples) for group in groups)
    assert len(groups) == 2_000 and 320 < kept < 480, "400 are expected, with a standard deviation of 18"


def test_a_base_of_impressions_predicts_the_rate_of_clicks(tmp_path: Path) -> None:
    """Ten items, of which one is clicked on in .4 of its impressions and the others in .02 to .11; a page with twice as many clicks."""
    rng = np.random.default_rng(2)
    rates = np.asarray([0.4, *np.linspace(0.02, 0.11, 9)])
    rows = []
    for number in range(6_000):
        item, page = int(rng.integers(10)), ("home", "search")[int(rng.integers(2))]
        clicks = rng.random() < rates[item] * (2.0 if page == "search" else 1.0) / 1.5
        rows.append(row("click" if clicks else "impression", number, f"u{rng.integers(300)}", f"i{item}", page))
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SHOWN))
    argv = ["--data", str(written(tmp_path, rows)), "--spec", str(spec), "--out", str(tmp_path / "base"), "--held-out", "0.3"]
    argv += ["--answer-window-seconds", "0"]
    assert train.main(argv) == 0
    found = json.loads((tmp_path / "base" / "report.json").read_text())
    every = found["tasks"]["interact"]["all"]
    assert every["labels"] == 1_800 == found["held_out"]["scored"]
    calibration = every["contestants"]["live"]["calibration"]
    assert calibration["low"] < 1.0 < calibration["high"] and 0.8 < calibration["value"] < 1.25
    assert every["contestants"]["live"]["auc"]["low"] > 0.65
    assert "users_and_items" in every["contestants"], "users differ in how often they click"
    assert "all" not in found["tasks"]["want"] or found["tasks"]["want"]["all"]["positives"] == 0


def test_the_window_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("impression", 2 * number, item=f"i{number}", page="home") for number in range(40)]
    rows += [row("click", 2 * number + 1, item=f"i{number}") for number in range(0, 40, 2)]
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SHOWN))
    argv = ["--data", str(written(tmp_path, rows)), "--spec", str(spec), "--out", str(tmp_path / "base"), "--held-out", "0"]
    assert train.main([*argv, "--answer-window-seconds", "1"]) == 0
    assert "20 impressions are left out: an act of the same user and item answers each of them within 1 s" in capsys.readouterr().out
    assert train.main([*argv[:-3], str(tmp_path / "none"), *argv[-2:], "--answer-window-seconds", "-1"]) == 2
    assert "--answer-window-seconds must be within 0 and 31,622,400 (a year)" in capsys.readouterr().err


def test_a_training_of_impressions_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("impression" if number % 4 else "click", number, f"u{number % 9}", f"i{number % 7}", "home") for number in range(600)]
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SHOWN | {"negatives": {"source": "impressions", "keep_rate": 0.5}}))
    data = written(tmp_path, rows)

    def run(out: str) -> int:
        argv = ["--data", str(data), "--spec", str(spec), "--out", str(tmp_path / out), "--held-out", "0", "--checkpoint-every", "128"]
        return train.main([*argv, "--answer-window-seconds", "0"])

    assert run("whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_base", _fails)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    assert run("cut") == 0
    hashes = [json.loads((tmp_path / out / "manifest.json").read_text())["metadata"]["state_hash"] for out in ("whole", "cut")]
    assert hashes[0] == hashes[1]


def _fails(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_spec_is_told_from_a_spec_of_impressions() -> None:
    assert SPEC.kinds_of_rows == ("buy", "click", "impression") and SPEC.reads_impressions
    with pytest.raises(ConfigurationError, match=r"negatives\.source"):
        FeatureSpec.parse(SHOWN | {"negatives": {"source": "clicks"}})


PLACED = FeatureSpec.parse(SHOWN | {"position_bias": {"places": 5}})


def test_rows_say_where_items_stood_and_an_act_has_it_from_what_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("impression", 0) | {"position": 3}, row("click", 1), row("click", 2, item="j"), row("impression", 3) | {"position": 10_000}]
    for size in (None, 2):
        if size is not None:
            shrink(monkeypatch, rows=size, text_bytes=200)
        history = read_history(written(tmp_path, rows), PLACED, ReadOptions(answer_window_ms=60_000))
        assert [(one.kind, one.position) for one in history.interactions] == [("click", 3), ("click", 0), ("impression", 10_000)]
        assert history.interactions[0] == next(iter(history.interactions))
    assert {one.position for one in read(tmp_path, rows).interactions} == {0}, "a spec without a position_bias does not look"
    groups, _ = groups_of(PLACED, list(history.interactions))
    assert [group.samples[0].position for group in groups] == [3, 0, 10_000]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (0, r"column 'position', row 2: '0' is no place in what was shown: the first item stands at 1, the last at 10,000 at most"),
        (1.5, r"row 2: '1.5' is no place"),
        (10_001, r"row 2: '10001' is no place"),
        (None, r"row 2: an empty cell says nothing of where an item stood that was seen"),
        ("first", r"row 2: 'first' is no number"),
    ],
)
def test_a_place_that_is_none_is_refused_with_its_row(cell: object, says: str, tmp_path: Path) -> None:
    rows = [row("impression", 0) | {"position": "1"}, row("impression", 1) | {"position": None if cell is None else str(cell)}]
    with pytest.raises(EventFileError, match=says):
        read_history(written(tmp_path, rows), PLACED)


def test_places_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match=r"column 'position' is missing.*the spec has a position_bias.*--columns position=NAME"):
        read_history(written(tmp_path, [row("impression", 0)]), PLACED)
    drawn = FeatureSpec.parse(SHOWN | {"position_bias": {}, "negatives": {}})
    assert len(read_history(written(tmp_path, [row("click", 0)]), drawn).interactions) == 1, "of drawn items nobody knows where they stood"
