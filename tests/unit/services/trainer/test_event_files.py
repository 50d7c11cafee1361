"""Every file in tests/event_files, as the real writers write them: each is read right, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.event_files.history import read_history
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.places import EventFileError
from tests.event_files import events
from tests.small_batches import batch_sizes  # noqa: F401 - each test runs with it

SPEC = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
FOLDER = Path("tests/event_files")
WRITERS = ("pandas", "polars", "duckdb", "fastparquet", "spark")
# By the part of a name that says how its times are written: what a reader finds, in the words of events.expected_ms.
_EXACT = "ts_us ts_ms ts_ns naive_us naive_ms naive_ns int96 berlin iso iso_naive ms us ns float_s decimal_s"
TIMES = dict.fromkeys(re.findall(r"\w+", _EXACT), "ms")
TIMES |= dict.fromkeys(("s", "ts_s", "naive_s"), "s") | {name: name for name in ("date", "yyyymmdd", "yyyymmddhhmmss")}
WRITTEN_TIMES = {
    "pandas": "ts_s ts_ms ts_us ts_ns naive_s naive_ms naive_us naive_ns berlin date s ms us ns yyyymmdd yyyymmddhhmmss float_s iso",
    "polars": "ts_ms ts_us ts_ns naive_ms naive_us naive_ns berlin date s ms us ns yyyymmdd yyyymmddhhmmss float_s iso iso_naive",
    "duckdb": "ts_us naive_s naive_ms naive_us naive_ns date s ms us ns yyyymmdd float_s iso iso_naive",
    "spark": "ts_us ts_ms ts_ns int96 naive_us date s ms us float_s decimal_s yyyymmdd iso",
    "fastparquet": "ts_us int96 ms",
}
WRITTEN_IDS = {
    "pandas": "int64 int32 uint64 float64 nullable text float_text category index",
    "polars": "int64 uint32 float64 decimal text category enum padded",
    "duckdb": "int64 uint64 hugeint float64 decimal text uuid enum padded",
    "spark": "int64 int32 float64 decimal text padded",
    "fastparquet": "int64 float64",
}
REFUSALS = {
    "polars/refused-int128.parquet": "cannot be read .Integers with more than 64 bits.*with common types",
    "spark/refused-no-header-csv": "names none of the columns user_id, .*CSV: with a header",
    "spark/refused-snappy-csv": "is compressed as Hadoop does it",
    "spark/refused-map": "column 'categories': map<.*> names no categories",
    "spark/refused-hive-text": "is a text file of Hive, without column names; write the table STORED AS PARQUET or ORC",
}


def written() -> list[str]:
    """Return the files and folders of all writers, relative to the folder."""
    return sorted(str(path.relative_to(FOLDER)) for writer in WRITERS for path in (FOLDER / writer).iterdir())


def expected_user(user: int, kind: str) -> str:
    return {"padded": f"{user:03d}", "uuid": f"00000000-0000-4000-8000-{user:012d}"}.get(kind, str(user))


@pytest.mark.parametrize("name", [name for name in written() if name not in REFUSALS])
def test_a_file_of_a_real_writer_is_read_right(name: str) -> None:
    time, user, categories = (*Path(name).name.split(".")[0].split("-"), "")[:3]
    history = read_history(FOLDER / name, SPEC)
    times = events.expected_ms(TIMES[time])
    rows = zip(events.USERS, events.ITEMS, events.KINDS, events.VALUES, times, strict=True)
    assert history.interactions == [
        Interaction(expected_user(one, user), str(item), kind, value, ms) for one, item, kind, value, ms in rows
    ]
    assert history.categories == {str(item): tuple(names) for item, names in events.CATEGORIES.items()}, categories
    assert not history.set_aside


@pytest.mark.parametrize(("name", "says"), REFUSALS.items())
def test_a_file_that_cannot_be_read_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(EventFileError, match=says) as caught:
        read_history(FOLDER / name, SPEC)
    assert str(caught.value).startswith(str(FOLDER / name))


@pytest.mark.parametrize("writer", WRITERS)
def test_the_matrix_has_each_type_and_unit_that_the_writer_has(writer: str) -> None:
    parts = [re.split(r"[-.]", Path(name).name) for name in written() if name.startswith(f"{writer}/") and name not in REFUSALS]
    assert {part[0] for part in parts} == {*WRITTEN_TIMES[writer].split()}
    assert {part[1] for part in parts} == {*WRITTEN_IDS[writer].split()}


@pytest.mark.parametrize("written", ["parquet", "feather"])
def test_an_empty_part_says_nothing(tmp_path: Path, written: str) -> None:
    folder, items = tmp_path / "events", tmp_path / "items"
    nothing = pd.DataFrame(columns=["user_id", "item_id", "kind", "value", "time", "categories"])
    some = pd.DataFrame(
        [["u", "i", "rating", 4.0, pd.Timestamp("2023-11-14T22:13:20Z")], ["v", "i", "rating", 2.0, pd.Timestamp("2023-11-14T22:13:20Z")]]
    )
    some.columns = nothing.columns[:5]
    for place, parts in ((folder, (nothing, some.assign(categories="x"), nothing)), (items, (nothing[["item_id", "categories"]],))):
        place.mkdir()
        for number, part in enumerate(parts):
            getattr(part, f"to_{written}")(place / f"part-{number}.{written}")
    if written == "parquet":
        assert pq.read_schema(folder / "part-0.parquet").field("user_id").type == pa.null(), "as pandas writes it"
    history = read_history(folder, SPEC, ReadOptions(items=items))
    assert [one.user_id for one in history.interactions] == ["u", "v"] and history.categories == {"i": ("x",)}
    (folder / f"part-1.{written}").unlink()
    with pytest.raises(EventFileError, match="holds no events"):
        read_history(folder, SPEC)
