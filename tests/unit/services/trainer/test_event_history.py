"""Files and folders of events as a whole: formats, dialects, what is set aside, and what is refused by name."""

from __future__ import annotations

import gzip
import io
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.event_files.history import read_history, remarks
from services.trainer.event_files.load import Names
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError
from tests.fuzz.event_files import fuzz_columns, fuzz_files
from tests.small_batches import batch_sizes  # noqa: F401 - each test runs with it

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
T_MS = 1_700_000_000_000
HEADER = "user_id,item_id,kind,value,time"


def csv(folder: Path, *rows: str, header: str = HEADER, name: str = "events.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def row(second: int, *, user: str = "u", item: str = "i", kind: str = "rating", value: str = "4") -> str:
    return f"{user},{item},{kind},{value},{T_MS // 1000 + second}"


def refused(path: Path, says: str, options: ReadOptions | None = None) -> None:
    with pytest.raises(EventFileError, match=says) as caught:
        read_history(path, SPEC, options or ReadOptions())
    assert "\n" not in str(caught.value)


def test_events_are_in_the_order_of_time_and_the_cut_splits_no_block(tmp_path: Path) -> None:
    path = csv(tmp_path, row(3, item="c"), row(1, item="a"), row(2, item="b"), row(2, item="b2"))
    history = read_history(path, SPEC, ReadOptions(until_fraction=0.5))
    assert [one.item_id for one in history.interactions] == ["a", "b", "b2"]
    assert [*history.categories] == ["a", "b", "b2", "c"]
    half = csv(tmp_path, *(f"u,{item},click,1,{T_MS / 1e3 + ms / 1e3}" for item, ms in (("a", 100), ("b", 900), ("c", 1_100))))
    assert [one.item_id for one in read_history(half, SPEC, ReadOptions(until_fraction=0.3)).interactions] == ["a", "b"]


def test_values_outside_the_range_are_set_aside_counted_and_said(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        *(row(0, value="0"), row(1), row(2, value="50"), row(3, value="")),
        *(row(4, kind="click", value=""), row(5, kind="click", value="-7"), row(6, value="inf")),
    )
    history = read_history(path, SPEC)
    assert [(one.kind, one.value) for one in history.interactions] == [("rating", 4.0), ("click", 1.0), ("click", -7.0)]
    outside, missing = "value of kind 'rating' is outside its range", "value of kind 'rating' is missing"
    assert history.set_aside == {outside: (3, f"{path} row 1: 0"), missing: (1, f"{path} row 4: nan")}
    assert f"set aside: 3 events whose {outside} (the first: {path} row 1: 0)" in [*remarks(history)]
    assert "time: Unix seconds" in history.notes[0] and "7 events from 2023-11-14 22:13" in history.notes[0]
    refused(csv(tmp_path, row(0, value="0")), "holds no event that can be learned: 1 were set aside")


def test_a_dwell_time_that_a_threshold_judges_must_be_there(tmp_path: Path) -> None:
    raw = SPEC.model_dump(mode="json")
    raw["kinds"]["play"] = {}
    raw["tasks"][1]["labels"]["play"] = {"at_least": 30}
    history = read_history(csv(tmp_path, row(0, kind="play", value="40"), row(1, kind="play", value="")), FeatureSpec.parse(raw))
    assert [one.value for one in history.interactions] == [40.0]
    assert history.set_aside["value of kind 'play' is missing"][0] == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (row(0, user=""), "column 'user_id', row 2: an empty cell is no id"),
        (row(0, item="nan"), "column 'item_id', row 2: 'nan' is a missing id"),
        (row(0, kind="thumb"), "column 'kind', row 2: 'thumb' is not in the feature spec"),
        (row(0, value="good"), "column 'value', row 2: 'good' is no number"),
        ("u,i,rating,4,soon", "column 'time', row 2: 'soon' is no number, unlike row 1; write all times alike"),
        ("u,i,rating,4", "cannot be read .*[Ee]xpected 5 columns, got 4"),
    ],
)
def test_a_wrong_cell_is_refused_with_file_column_row_and_value(tmp_path: Path, line: str, says: str) -> None:
    refused(csv(tmp_path, row(1), line), rf"events\.csv: {says}")


def test_a_missing_column_or_file_or_event_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.csv", r"absent\.csv: there is no such file or folder")
    refused(
        csv(tmp_path, "1,2,4", header="user_id,item_id,value"),
        "column 'kind' is missing; wanted: .*of these it has user_id, item_id, value",
    )
    refused(
        csv(tmp_path, "1,2", header="userId,movieId"), "names none of the columns user_id, .*, but 'userId', 'movieId'; say what.*--columns"
    )
    refused(csv(tmp_path, row(0), header=HEADER + ",user_id"), "has two columns 'user_id'")
    refused(csv(tmp_path), "holds no events")
    (tmp_path / "empty.csv").touch()
    refused(tmp_path / "empty.csv", "is empty")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "the folder holds no data files")


THEIRS = Names.parse("user_id=who,item_id=what,kind=did,value=worth,time=at,categories=tags")
OWN_NAMES = Names.parse("user_id=who, item_id=what,kind = did,time=at")
ACTS = FeatureSpec.parse(
    {
        **SPEC.model_dump(mode="json", exclude={"kinds", "tasks", "blend"}),
        "kinds": {"click": {}},
        "tasks": [{"name": "interact", "labels": {"click": 1}, "unanswered": 0}],
        "blend": {"interact": 1.0},
    }
)


def test_a_file_may_have_names_of_its_own_for_its_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, f"u,i,rating,4,{T_MS}", header="who,what,did,value,at")
    history = read_history(path, SPEC, ReadOptions(names=OWN_NAMES))
    assert history.interactions == [Interaction("u", "i", "rating", 4.0, T_MS)]
    apart = csv(tmp_path, f"i,rating,4,{T_MS}", header="what,did,value,at", name="f/who=7/0.csv")
    assert read_history(apart.parents[1], SPEC, ReadOptions(names=OWN_NAMES)).interactions[0].user_id == "7"


def test_errors_name_columns_as_the_file_does_and_say_how_to_name_them(tmp_path: Path) -> None:
    names = ReadOptions(names=OWN_NAMES)
    refused(csv(tmp_path, f",i,rating,4,{T_MS}", header="who,what,did,value,at"), "column 'who', row 1: an empty cell is no id", names)
    refused(
        csv(tmp_path, "i,4", header="what,value"),
        "column 'who' is missing, which --columns user_id=who names",
        names,
    )
    refused(csv(tmp_path, f"u,{T_MS}", header="user_id,time"), "'item_id' is missing.*another name there.*--columns item_id=NAME")
    # A file that has ours as well as theirs means theirs; and theirs must be there.
    refused(csv(tmp_path, row(0)), "names none of the columns who, .*--columns OURS=YOURS", ReadOptions(names=THEIRS))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user", "'user' is not OURS=YOURS"),
        ("user_id=", "'user_id=' is not"),
        ("kind=a,kind=b", "'kind' is there twice"),
        ("kind=a,time=a", "'a' is there twice"),
    ],
)
def test_what_is_no_list_of_names_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Names.parse(text)


def test_where_no_kind_states_an_opinion_events_need_no_values(tmp_path: Path) -> None:
    path = csv(tmp_path, f"u,i,click,{T_MS}", header="user_id,item_id,kind,time")
    assert read_history(path, ACTS).interactions == [Interaction("u", "i", "click", 1.0, T_MS)]
    refused(path, "column 'value' is missing.*a kind of the spec has a value_range, so events have values")


def test_categories_stand_in_the_file_of_items_too(tmp_path: Path) -> None:
    """Its word counts, since it is about items; an item that nobody touched is none of the events'."""
    raw = ACTS.model_dump(mode="json") | {
        "format": 2, "features": [{"id_feature": {"feature_name": "kind_of", "expression": "item:categories", "vocab_list": ["a", "b"]}}]
    }  # fmt: skip
    events = csv(tmp_path, *(f"u,{item},click,{T_MS}" for item in "ij"), header="who,what,did,at")
    items = csv(tmp_path, "i,a|b", "k,b", "j,", header="item_id,categories", name="items.csv")
    history = read_history(events, FeatureSpec.parse(raw), ReadOptions(names=OWN_NAMES, items=items))
    assert history.categories == {"i": ("a", "b"), "j": ()}
    assert history.item_attributes.last("i") == {"categories": ("a", "b")}


@pytest.mark.parametrize("sign", [",", "\t", ";", "|"])
def test_delimiters_byte_order_marks_line_ends_and_blanks(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "events.csv"
    text = f"\ufeff{HEADER.replace(',', f' {sign}')}\r\n{row(0).replace(',', f' {sign} ')}\r\n"
    path.write_bytes(text.encode())
    assert read_history(path, SPEC).interactions == [Interaction("u", "i", "rating", 4.0, T_MS)]


def test_quotes_are_doubled_or_escaped_and_may_hold_line_ends(tmp_path: Path) -> None:
    header = "title," + HEADER + ",categories"
    doubled = csv(tmp_path, '"a ""b"", c\nd",' + row(0) + ',"[""x"", ""y, z""]"', '"C:\\",' + row(1) + ",", header=header)
    escaped = csv(
        tmp_path, '"a \\"b\\", c\nd",' + row(0) + ',"[\\"x\\", \\"y, z\\"]"', '"e",' + row(1) + ",", header=header, name="spark.csv"
    )
    one = csv(tmp_path, row(0) + ',"[\\"x\\"]"', header=HEADER + ",categories", name="one.csv")
    for path in (doubled, escaped):
        history = read_history(path, SPEC)
        assert len(history.interactions) == 2
        assert history.categories == {"i": ("x", "y, z")}  # the second row's cell is empty: it says nothing
    assert read_history(one, SPEC).categories == {"i": ("x",)}


def test_the_last_row_that_says_any_categories_counts(tmp_path: Path) -> None:
    table = {
        "user_id": [1, 1, 1], "item_id": [5, 5, 6], "kind": ["click"] * 3, "value": [1.0] * 3, "time": [T_MS, T_MS + 1, T_MS + 2],
        "categories": [["a"], None, None],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "events.pq")
    assert read_history(tmp_path / "events.pq", SPEC).categories == {"5": ("a",), "6": ()}


def test_the_separator_of_categories_is_one_for_all_files_or_said(tmp_path: Path) -> None:
    header = HEADER + ",categories"
    csv(tmp_path, row(0, item="a") + ',"Books, used"', header=header, name="f/1.csv")
    csv(tmp_path, row(1, item="b") + ",Films|War", header=header, name="f/2.csv")
    assert read_history(tmp_path / "f", SPEC).categories == {"a": ("Books, used",), "b": ("Films", "War")}
    said = ReadOptions(category_separator=",")
    assert read_history(tmp_path / "f", SPEC, said).categories == {"a": ("Books", "used"), "b": ("Films|War",)}
    refused(csv(tmp_path, row(0) + ",['a' 'b']", header=header), r"column 'categories', row 1: \"\['a' 'b'\]\" is no list of names")


def test_files_of_a_folder_may_differ_in_types_and_format(tmp_path: Path) -> None:
    csv(tmp_path, row(0, user="1.0"), name="f/0.csv")
    csv(tmp_path, f"1,i,click,,{T_MS + 1000}", name="f/1.csv")
    columns = {"item_id": [7], "kind": ["click"], "value": [1], "time": [T_MS * 1000 + 2_000_000], "user_id": [1.0]}
    pq.write_table(pa.table(columns), tmp_path / "f" / "000000_0")
    rows = [f'{{"user_id": 1, "item_id": "7.0", "kind": "click", "time": {T_MS + 3000}, "value": null}}', ""]
    (tmp_path / "f" / "3.jsonl").write_text("\n".join(rows))
    history = read_history(tmp_path / "f", SPEC)
    assert [(one.user_id, one.time_ms - T_MS) for one in history.interactions] == [("1", 0), ("1", 1000), ("1", 2000), ("1", 3000)]
    assert "4 files" in history.notes[0]


def test_partition_folders_are_text_null_and_unescaped(tmp_path: Path) -> None:
    header = HEADER.removeprefix("user_id,")
    line = row(0).removeprefix("u,")
    csv(tmp_path, line, header=header, name="f/day=1/user_id=003/0.csv")
    csv(tmp_path, line, header=header, name="f/day=2/user_id=a%20b%2Fc/_SUCCESS.csv")
    csv(tmp_path, line, header=header, name="f/day=2/user_id=a%20b%2Fc/0.csv")
    assert sorted(one.user_id for one in read_history(tmp_path / "f", SPEC).interactions) == ["003", "a b/c"]
    csv(tmp_path, line, header=header, name="f/day=3/user_id=__HIVE_DEFAULT_PARTITION__/0.csv")
    refused(tmp_path / "f", "PARTITION__/0.csv: column 'user_id', row 1: an empty cell is no id")
    csv(tmp_path, row(0, user="typed"), name="g/user_id=folder/0.csv")
    assert read_history(tmp_path / "g", SPEC).interactions[0].user_id == "typed"


def test_sparks_old_timestamps_do_not_wrap_around(tmp_path: Path) -> None:
    """As nanoseconds, pyarrow's default, 9999-12-31 is 1816-03-29 (findings/pyarrow_int96_wraps.sh)."""
    columns = {
        "user_id": [1],
        "item_id": [5],
        "kind": ["click"],
        "value": [1.0],
        "time": pa.array([datetime(9999, 12, 31)], pa.timestamp("us")),
    }
    pq.write_table(pa.table(columns), tmp_path / "e.parquet", use_deprecated_int96_timestamps=True)
    refused(tmp_path / "e.parquet", "column 'time', row 1: '9999-12-31 .*' is not between the years 1970 and 2199")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("_delta_log/0.json", "is a Delta Lake table, whose folder also holds files with removed or unfinished rows"),
        ("metadata/v1.metadata.json", "is an Iceberg table"),
        (".hoodie/x", "is a Hudi table"),
        ("_spark_metadata/0", "is the output of a Spark stream"),
        ("_temporary/0/x", "holds _temporary and no _SUCCESS: its writer has not finished"),
    ],
)
def test_folders_whose_files_do_not_all_count_are_refused(tmp_path: Path, entry: str, says: str) -> None:
    csv(tmp_path, row(0), name="f/0.csv")
    (tmp_path / "f" / entry).parent.mkdir(parents=True)
    (tmp_path / "f" / entry).write_text("{}")
    refused(tmp_path / "f", says)
    refused(f"{tmp_path}/f/*.csv", says)


def test_links_lose_and_double_nothing(tmp_path: Path) -> None:
    csv(tmp_path, row(0), name="far/0.csv")
    csv(tmp_path, row(1), name="f/1.csv")
    (tmp_path / "f" / "2024").symlink_to(tmp_path / "far")
    (tmp_path / "f" / "latest.csv").symlink_to(tmp_path / "f" / "1.csv")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "f")
    assert len(read_history(tmp_path / "f", SPEC).interactions) == 2
    assert len(read_history(f"{tmp_path}/f/*.csv", SPEC).interactions) == 1
    (tmp_path / "f" / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    refused(tmp_path / "f", r"gone\.csv: is a link to nothing; remove it")


def test_a_link_takes_nothing_from_the_folder_that_it_leads_to(tmp_path: Path) -> None:
    file = csv(tmp_path, row(0), name="f/user_id=003/0.csv")
    text = file.read_text()
    file.write_text("\n".join(line.partition(",")[2] for line in text.splitlines()))
    (tmp_path / "f" / "latest.csv").symlink_to(file)
    (tmp_path / "f" / "latest").symlink_to(file.parent)
    assert [one.user_id for one in read_history(tmp_path / "f", SPEC).interactions] == ["003"]


def zipped(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("events.csv", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("e.parquet", HEADER.encode(), "is no Parquet file: it does not begin with PAR1"),
        ("e.parquet", b"PAR1" + bytes(60), "cannot be read"),
        ("e.parquet", b"PARE" + bytes(60), "is no Parquet file"),
        ("e", b"PARE" + bytes(60), "is an encrypted Parquet file, which is not read; write Parquet, or CSV"),
        ("e.zip", zipped(HEADER.encode()), "is a zip archive .or Excel's .xlsx., which is not read"),
        ("e.avro", b"Obj\x01" + bytes(60), "is an Avro file"),
        ("e.csv", HEADER.encode("utf-16"), "is text in UTF-16"),
        ("e.csv", HEADER.encode() + "\nJürgen,i,rating,4,1700000000".encode("latin-1"), "cannot be read .*UTF8"),
        ("e.csv", b"Stra\xdfe," + HEADER.encode(), "its first line is no UTF-8"),
        ("e.csv.gz", gzip.compress(HEADER.encode())[:-9], "cannot be read"),
        ("e.csv.zst", b"\x28\xb5\x2f\xfd\x00", "cannot be read"),
        ("e.parquet.gz", gzip.compress(b"PAR1" + bytes(60)), "is a compressed PAR1 file"),
        ("e.csv.lz4", b"\x00\x00\x01\x00abc", "is compressed as Hadoop does it"),
        ("e.bin", b"ab\x00cd", "is no text and no format that is read"),
        ("e.json", b"[{}]", "is one JSON array; write one JSON object a line"),
        ("e.jsonl", b'{"user_id": 1}\n{', "row 2: is no JSON object"),
        ("e.jsonl", b'{"user_id": 1}\n5', "row 2: is no JSON object"),
        ("e.jsonl", b'{"user_id": 1}\n{"user_id": "a"}', "column 'user_id': its cells are of several types"),
        ("e.jsonl", b'{"user_id": ' + b"9" * 40 + b"}", "column 'user_id': its cells are of several types"),
        ("e.orc", b"ORC" + bytes(60), "cannot be read"),
        ("e.arrow", b"ARROW1\x00\x00" + bytes(60), "cannot be read"),
        ("e.txt", b"1\x01i\x01rating", "is a text file of Hive, without column names"),
    ],
)
def test_a_format_that_is_not_read_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, rf"{name}: .*{says}")


def test_damaged_columns_and_files_are_read_or_refused() -> None:
    """A seeded sample of tests/fuzz/test_event_files.py."""
    columns, files = fuzz_columns(500, seed=1), fuzz_files(500, seed=1)
    assert min(columns["read"], columns["refused"]) > 300 and files["refused"] > 100 and files["read"] > 10, (columns, files)


MISSING = [
    pytest.param(["Drama|War", None, "Comedy", None, None, "Crime"], id="text"),
    pytest.param([["Drama", "War"], None, ["Comedy"], None, None, ["Crime"]], id="lists"),
    pytest.param([["Drama", "War"], None, ["Comedy"], [], None, ["Crime"]], id="an empty list says that there are none"),
    pytest.param([7.0, float("nan"), 8.0, None, None, 9.0], id="numbers"),
    pytest.param([None] * 6, id="none at all"),
]


@pytest.mark.parametrize("categories", MISSING)
def test_a_frame_is_the_same_history_in_every_format_that_pandas_writes(tmp_path: Path, categories: list[object]) -> None:
    """pandas writes a missing cell as nothing, or as the user's word for it, into CSV, and as null into Parquet."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "user_id": ["1", "2", "1", "2", "3", "3"],
            "item_id": ["a", "a", "b", "b", "c", "c"],
            "kind": ["rating", "click", "rating", "click", "click", "rating"],
            "value": [4.0, None, 3.0, None, None, 5.0],
            "time": [T_MS // 1000 + second for second in range(6)],
            "categories": categories,
        }
    )
    frame.to_parquet(tmp_path / "events.parquet")
    frame.to_feather(tmp_path / "events.feather")
    frame.to_json(tmp_path / "events.jsonl", orient="records", lines=True)
    for name, options in {
        "csv": {},
        "NA.csv": {"na_rep": "NA"},
        "null.csv": {"na_rep": "NULL"},
        "tsv": {"sep": "\t", "na_rep": r"\N"},
    }.items():
        frame.to_csv(tmp_path / f"events.{name}", index=False, **options)
    wanted = read_history(tmp_path / "events.parquet", SPEC)
    for path in sorted(tmp_path.iterdir()):
        read = read_history(path, SPEC)
        assert (read.interactions, read.categories, read.set_aside) == (wanted.interactions, wanted.categories, wanted.set_aside), path.name
    if categories[0] is not None:
        erased = categories[3] == []
        assert [len(names) for names in wanted.categories.values()] == [
            2 if isinstance(categories[0], (str, list)) else 1,
            0 if erased else 1,
            1,
        ]
