"""Events that do not fit into memory: sorted runs, sequences on disk, and the same history as sorting everything in memory gives."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.registry import known_implementations

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.event_files.history import read_history
from services.trainer.event_files.ordered import Sorter, WorkFolder
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError
from services.trainer.event_files.stored import StoredEvents, packed_attributes, unpacked_attributes
from services.trainer.replay_order import BatchConfig, replay_order
from tests.small_batches import shrink

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
T_S = 1_700_000_000
SCHEMA = pa.schema([("key", pa.int64()), ("place", pa.int64())])


def sorted_by_runs(keys: list[int], work: WorkFolder, *, batch: int) -> tuple[list[tuple[int, int]], int]:
    sorter = Sorter(work, SCHEMA, "key")
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        sorter.add(
            pa.RecordBatch.from_arrays([pa.array(part, pa.int64()), pa.array(range(start, start + len(part)), pa.int64())], schema=SCHEMA)
        )
    num_runs = sorter.num_runs
    run = sorter.finish()
    rows = [row for page in run for row in zip(*(column.to_pylist() for column in page.columns), strict=True)]
    assert len(run) == len(rows) == len(keys)
    return rows, num_runs


@pytest.mark.parametrize("seed", range(30))
def test_runs_merge_to_the_stable_order_of_the_key(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    keys = [draw.randrange(draw.choice((3, 50, 10_000))) for _ in range(draw.randrange(400))]
    work = WorkFolder(tmp_path / "work", block_rows=draw.randint(1, 60), fan_in=draw.randint(2, 5))
    rows, _ = sorted_by_runs(keys, work, batch=draw.randint(1, 40))
    assert rows == sorted(zip(keys, range(len(keys)), strict=True), key=lambda row: row[0])
    work.close()
    assert not any(tmp_path.iterdir())


def test_what_is_in_order_or_nearly_so_is_one_run(tmp_path: Path) -> None:
    in_order = [place // 3 for place in range(500)]
    nearly = [key - 2 * (place % 2) for place, key in enumerate(range(500))]
    for keys in (in_order, nearly):
        rows, num_runs = sorted_by_runs(keys, WorkFolder(tmp_path / "work", block_rows=50), batch=50)
        assert num_runs == 1 and [key for key, _ in rows] == sorted(keys)
    _, num_runs = sorted_by_runs(in_order[::-1], WorkFolder(tmp_path / "work", block_rows=50), batch=50)
    assert num_runs == 10


def test_few_rows_touch_no_disk(tmp_path: Path) -> None:
    rows, num_runs = sorted_by_runs([3, 1, 2], WorkFolder(tmp_path / "absent" / "work"), batch=2)
    assert (rows, num_runs) == ([(1, 1), (2, 2), (3, 0)], 0)
    assert not (tmp_path / "absent").exists()


def test_a_work_folder_is_of_one_process_and_leftovers_of_a_dead_one_go(tmp_path: Path) -> None:
    path = tmp_path / "base.events"
    path.mkdir()
    (path / "left").touch()
    one = WorkFolder.beside(str(tmp_path / "base"))
    assert one.new_file().parent == path and not (path / "left").exists()
    with pytest.raises(ConfigurationError, match=r"base\.events\.lock: another process trains a base for the same place"):
        WorkFolder(path).new_file()
    one.close()
    assert not any(tmp_path.iterdir())
    two = WorkFolder(path)
    assert two.new_file().exists() is False and path.is_dir()
    two.close()


@dataclass(frozen=True)
class Row:
    user: str
    item: str
    kind: str
    value: float | None
    time_s: int
    categories: str | None


def drawn(count: int, seed: int) -> list[Row]:
    """Rows in no order, many of one second, some that are set aside, some that say nothing of their item's categories."""
    draw = random.Random(seed)
    return [
        Row(
            f"u{draw.randrange(12)}",
            f"i{draw.randrange(30)}",
            kind := draw.choice(("rating", "rating", "click")),
            draw.choice((1.0, 2.5, 5.0, 9.0, None)) if kind == "rating" else draw.choice((1.0, None)),
            T_S + draw.randrange(80),
            draw.choice((None, "a", "a|b", f"c{place}")),
        )
        for place in range(count)
    ]


def expected(rows: list[Row]) -> tuple[list[Interaction], dict[str, tuple[str, ...]], list[int]]:
    """Return events, categories and the count of what is set aside, by sorting everything in memory."""
    ordered = sorted(rows, key=lambda row: row.time_s)
    categories: dict[str, tuple[str, ...]] = {}
    for row in ordered:
        categories.setdefault(row.item, ())
        if row.categories is not None:
            categories[row.item] = tuple(row.categories.split("|"))
    learned = [row for row in ordered if row.kind == "click" or (row.value is not None and row.value <= 5)]
    events = [Interaction(row.user, row.item, row.kind, 1.0 if row.value is None else row.value, row.time_s * 1000) for row in learned]
    return (
        events,
        categories,
        sorted((sum(row.value is None and row.kind == "rating" for row in rows), sum(row.value == 9 for row in rows))),
    )


def write(folder: Path, name: str, rows: list[Row]) -> None:
    columns = {"user_id": "user", "item_id": "item", "kind": "kind", "value": "value", "time": "time_s", "categories": "categories"}
    records = [{column: getattr(row, name) for column, name in columns.items()} for row in rows]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=7)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        text = [",".join(columns), *(",".join("" if cell is None else str(cell) for cell in record.values()) for record in records)]
        data = ("\n".join(text) + "\n").encode()
        packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rsplit(".")[-1], lambda plain: plain)
        path.write_bytes(packed(data))


@pytest.mark.parametrize("seed", range(6))
def test_files_of_all_formats_give_the_history_of_a_sort_in_memory(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, rows=3, text_bytes=200)
    rows = drawn(200, seed)
    names = ["a/0.csv", "b/1.csv.gz", "c/2.parquet", "d/3.csv.zst", "e/4.jsonl"]
    for place, name in enumerate(names):
        write(tmp_path / "data", name, rows[place * 40 : place * 40 + 40])
    said: list[str] = []
    work = WorkFolder(tmp_path / "work")
    history = read_history(tmp_path / "data", SPEC, work=work, say=said.append)
    events, categories, set_aside = expected(rows)
    assert history.interactions == events and history.interactions[3:90] == events[3:90]
    assert [*history.categories.items()] == [*categories.items()], "in the order of first appearance, too"
    assert sorted(count for count, _ in history.set_aside.values()) == set_aside
    assert any((tmp_path / "work").iterdir()), "they are on disk"
    assert len(said) == 1 and said[0].startswith("reading: 200 rows in ") and said[0].endswith("sorted runs merged")
    assert "5 files, 200 events" in history.notes[0]
    work.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_the_first_event_that_is_set_aside_is_the_earliest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, rows=2, text_bytes=100)
    rows = [Row("u", "i", "rating", 3.0 if second % 2 else 9.0, T_S + second, None) for second in (9, 8, 7, 6, 2, 4, 5)]
    write(tmp_path, "events.csv", rows)
    history = read_history(tmp_path / "events.csv", SPEC)
    assert history.set_aside == {"value of kind 'rating' is outside its range": (4, f"{tmp_path / 'events.csv'} row 5: 9")}


@pytest.mark.parametrize("active_users", [0, 1, 3, 100])
def test_stored_events_are_replayed_in_the_order_of_those_in_memory(
    active_users: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, rows=4, text_bytes=200)
    write(tmp_path, "events.parquet", drawn(300, seed=1))
    stored = read_history(tmp_path / "events.parquet", SPEC).interactions
    assert isinstance(stored, StoredEvents)
    config = BatchConfig(active_users=active_users)
    for part in (stored, stored[:120], stored[120:], stored[:0]):
        order = replay_order(part, config)
        placed = list(order)
        assert placed == list(replay_order(list(part), config)) and len(order) == len(placed) == len(part)
        assert placed == list(order), "a second pass has the same order"


def test_stored_events_are_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, rows=4, text_bytes=200)
    write(tmp_path, "events.parquet", drawn(60, seed=2))
    stored = read_history(tmp_path / "events.parquet", SPEC).interactions
    plain = list(stored)
    assert [stored[place] for place in range(-len(plain), len(plain))] == plain + plain
    assert (stored[5:-3], stored[10:4], stored[::-2], stored[20:][5:9]) == (plain[5:-3], [], plain[::-2], plain[25:29])
    assert stored != plain[:-1] and stored != [*plain[:-1], plain[0]] and stored != "events"
    with pytest.raises(IndexError):
        stored[len(plain)]


def test_attributes_are_packed_without_loss() -> None:
    for attributes in (
        {"city": "Rome", "n": 5, "f": 5.0, "yes": True},
        {"list": ["a", 1, 2.5, None], "map": {"a": 1, 2: 3.5, "inner": {"x": 1}}},
        {"odd": "\ud800\u2028", "big": 2**63, "tiny": 5e-324, "inf": float("inf")},
        {},
    ):
        again = unpacked_attributes(packed_attributes(attributes))
        assert again == attributes and repr(again) == repr(attributes)
    assert np.isnan(unpacked_attributes(packed_attributes({"nan": float("nan")}))["nan"])


LATE = [
    pytest.param("time", "1700000000000", "row 41: 1700000000000 looks like Unix milliseconds, and row 1 like Unix seconds", id="a unit"),
    pytest.param("time", "1.7e9", "", id="a number with an exponent"),
    pytest.param("time", "soon", "row 41: 'soon' is no number, unlike row 1", id="a word"),
    pytest.param("time", "", "row 41: an empty cell is no time", id="an empty time"),
    pytest.param("user", "nan", "row 41: 'nan' is a missing id", id="an id"),
    pytest.param("kind", "thumb", "row 41: 'thumb' is not in the feature spec", id="a kind"),
    pytest.param("value", "good", "row 41: 'good' is no number", id="a value"),
    pytest.param("categories", "['a' 'b']", r"row 41: .* is no list of names", id="categories"),
]


@pytest.mark.parametrize(("column", "cell", "says"), LATE)
def test_a_wrong_cell_in_a_late_batch_is_refused_with_its_row(
    column: str, cell: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, rows=4, text_bytes=200)
    cells = {"user": "u", "item": "i", "kind": "rating", "value": "4", "time": str(T_S), "categories": "a"}
    lines = [",".join((cells | ({"item": "late", column: cell} if row == 40 else {})).values()) for row in range(60)]
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,kind,value,time,categories\n" + "\n".join(lines) + "\n")
    if not says:
        assert len(read_history(path, SPEC).interactions) == 60
        return
    with pytest.raises(EventFileError, match=says):
        read_history(path, SPEC)


def test_zones_and_columns_of_json_are_a_matter_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, rows=2, text_bytes=100)
    path = tmp_path / "events.csv"
    moments = ["2024-01-01T00:00:00Z"] * 9 + ["2024-01-01T00:00:01"]
    path.write_text("user_id,item_id,kind,value,time\n" + "".join(f"u,i,click,1,{moment}\n" for moment in moments))
    with pytest.raises(EventFileError, match="row 10: '2024-01-01T00:00:01' has no zone, unlike row 1"):
        read_history(path, SPEC)
    rows = [{"user_id": 1, "item_id": 7, "kind": "click", "value": None, "time": T_S + second} for second in range(6)]
    rows[5] |= {"user_id": 2.0, "value": 3}
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [one.user_id for one in read_history(path, SPEC).interactions] == ["1"] * 5 + ["2"]
    rows[4]["user_id"] = "text"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(EventFileError, match=r"column 'user_id': its cells are of several types .*; write one type"):
        read_history(path, SPEC)


def test_a_row_of_csv_may_be_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, rows=4, text_bytes=200)
    lines = [f'u,i,click,1,{T_S + row},"{"y" * (900 if row == 20 else 3)}"' for row in range(40)]
    (tmp_path / "events.csv").write_text("user_id,item_id,kind,value,time,title\n" + "\n".join(lines) + "\n")
    assert [one.time_ms // 1000 - T_S for one in read_history(tmp_path / "events.csv", SPEC).interactions] == [*range(40)]


def test_patterns_and_urls_are_read_like_folders(tmp_path: Path) -> None:
    rows = drawn(40, seed=3)
    write(tmp_path / "f", "user_id=x/day=1/a.parquet", rows[:20])
    write(tmp_path / "f", "user_id=x/day=2/b.csv", rows[20:])
    (tmp_path / "f" / "_SUCCESS").touch()
    whole = read_history(tmp_path / "f", SPEC)
    assert read_history(f"{tmp_path}/f/user_id=*/day=*/*", SPEC).interactions == whole.interactions
    assert read_history(f"{tmp_path}/f/*/day=1", SPEC).interactions == read_history(tmp_path / "f/user_id=x/day=1", SPEC).interactions
    assert read_history(f"file://{tmp_path}/f", SPEC).interactions == whole.interactions
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "f"), "/streamed/f", recursive=True)
    try:
        for url in (
            "memory://streamed/f",
            "memory://streamed/f/user_id=*/day=*/*",
            "memory:///streamed/f/",
            "memory://streamed/f/**",
            "memory://streamed/f/**/*",
        ):
            history = read_history(url, SPEC)
            assert (history.interactions, history.categories) == (whole.interactions, whole.categories), url
        one = read_history("memory://streamed/f/user_id=x/day=2/b.csv", SPEC)
        assert one.notes[0].startswith("memory://streamed/f/user_id=x/day=2/b.csv: 1 file, 20 events")
        memory.pipe("/streamed/g/_delta_log/0.json", b"{}")
        refusals = {
            "memory://streamed/absent": "memory://streamed/absent: there is no such file or folder",
            "memory://streamed/f/*.absent": "no file matches the pattern",
            "memory://streamed/g": "memory://streamed/g: is a Delta Lake table",
            f"{tmp_path}/f/*.absent": "no file matches the pattern",
        }
        for url, says in refusals.items():
            with pytest.raises(EventFileError, match=says.replace("*", r"\*")):
                read_history(url, SPEC)
    finally:
        memory.rm("/streamed", recursive=True)


def test_folders_of_a_pattern_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "f" / "user_id=003" / "0.csv"
    path.parent.mkdir(parents=True)
    path.write_text(f"item_id,kind,value,time\ni,click,1,{T_S}\n")
    assert [one.user_id for one in read_history(f"{tmp_path}/f/*/*.csv", SPEC).interactions] == ["003"]


def test_a_store_whose_package_is_missing_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "s4", {"class": "s4fs.S4", "err": "Install s4fs to access S4"})
    with pytest.raises(EventFileError, match=r"s4://bucket/events is in no store .*Install s4fs to access S4; install that package"):
        read_history("s4://bucket/events", SPEC)
    with pytest.raises(EventFileError, match="nosuch"):
        read_history("nosuch://bucket/events", SPEC)


def test_the_cut_by_time_of_stored_events_splits_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(150, seed=4)
    write(tmp_path, "events.parquet", rows)
    whole = read_history(tmp_path / "events.parquet", SPEC, ReadOptions(until_fraction=0.6)).interactions
    shrink(monkeypatch, rows=3, text_bytes=100)
    assert read_history(tmp_path / "events.parquet", SPEC, ReadOptions(until_fraction=0.6)).interactions == list(whole)
