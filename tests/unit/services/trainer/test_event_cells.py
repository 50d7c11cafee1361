"""What single cells and columns of event files mean, and what is refused: with file, column, row, value and what to do."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from services.trainer.event_files.categories import UnreadableCategories, category_names, separator_of
from services.trainer.event_files.columns import read_ids, read_kinds, read_values
from services.trainer.event_files.places import EventFileError, Place
from services.trainer.event_files.times import UNIT_NAMES, UNITS, parse_moment, read_times

PLACE = Place(Path("events.parquet"), "c")
T_S = 1_700_000_000


def ms_of(cells: list[Any], kind: Any = None, unit: str | None = None) -> list[int]:
    return read_times(pa.array(cells, kind), PLACE, unit)[0].tolist()


def number_of(moment: datetime, unit: str) -> int:
    if unit.startswith("yyyy"):
        return int(moment.strftime("%Y%m%d%H%M%S" if unit.endswith("ss") else "%Y%m%d"))
    return int(moment.timestamp()) * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]


def test_every_moment_from_1971_to_2199_is_recognised_in_every_unit_and_never_as_another() -> None:
    draw = random.Random(0)
    begin, end = datetime(1971, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
    moments = [begin, end - timedelta(seconds=1), *(begin + (end - begin) * draw.random() for _ in range(2_000))]
    for unit in UNIT_NAMES:
        whole = [moment.replace(microsecond=0) for moment in moments]
        if unit == "yyyymmdd":
            whole = [moment.replace(hour=0, minute=0, second=0) for moment in whole]
        got, taken_for = read_times(pa.array([number_of(moment, unit) for moment in whole]), PLACE)
        assert got.tolist() == [int(moment.timestamp()) * 1000 for moment in whole]
        assert taken_for == next(known.described for known in UNITS if known.name == unit)
    for one, other in itertools.pairwise(UNITS):
        assert one.end <= other.first


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(25, 3), pa.string(), pa.large_string(), pa.string_view(), pa.binary()]
)
def test_a_number_is_the_same_moment_in_every_type(kind: Any) -> None:
    cells = [T_S, T_S + 1]
    if pa.types.is_decimal(kind):
        cells = [Decimal(cell) for cell in cells]
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        cells = [str(cell).encode() if kind == pa.binary() else f" {cell}" for cell in cells]
    assert ms_of(cells, kind) == [T_S * 1000, T_S * 1000 + 1000]


def test_a_named_unit_is_believed_within_1970_to_2199() -> None:
    assert ms_of([0, 5], unit="s") == [0, 5_000]
    assert ms_of([0, 5], unit="ms") == [0, 5]
    assert ms_of(["0.5"], unit="s") == [500]
    with pytest.raises(EventFileError, match="row 2: 1700000000000 is none of the Unix seconds"):
        ms_of([5, T_S * 1000], unit="s")


MOMENT = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
MOMENT_MS = int(MOMENT.timestamp()) * 1000


@pytest.mark.parametrize(
    ("text", "plus_ms"),
    [
        ("2024-01-02T03:04:05Z", 0),
        ("2024-01-02 03:04:05+00", 0),
        ("2024-01-02 03:04:05 UTC", 0),
        ("2024/01/02 03:04:05+0000", 0),
        ("2024-01-02T05:04:05.250+02:00", 250),
        ("2024-01-01 21:34:05.250999-05:30", 250),
        ("2024-01-02T03:04:05.123456789Z", 123),
        ("2024-01-02T03:04:05,5Z", 500),
        ("2024-01-02T03:04Z", -5_000),
    ],
)
def test_iso_moments_have_any_fraction_and_any_zone(text: str, plus_ms: int) -> None:
    assert parse_moment(text) == (MOMENT_MS + plus_ms, True)
    mixed = ms_of([text, "2024-01-02T03:04:05.1Z"])
    assert mixed == [MOMENT_MS + plus_ms, MOMENT_MS + 100]


def test_what_has_no_zone_is_utc_and_a_date_is_its_midnight() -> None:
    assert ms_of(["2024-01-02 03:04:05", "2024-01-02 03:04:05.5"]) == [MOMENT_MS, MOMENT_MS + 500]
    assert ms_of(["2024-01-02", "1970-01-01"]) == [1_704_153_600_000, 0]


@pytest.mark.parametrize(
    ("cells", "kind", "says"),
    [
        ([T_S, None], pa.int64(), "row 2: an empty cell is no time; write Unix seconds"),
        ([f"{T_S}", ""], None, "row 2: an empty cell is no time"),
        ([T_S, 0], None, r"row 2: 0 is no time from 1971 to 2199 in s, ms, us, ns or as yyyymmdd\[hhmmss\]"),
        ([T_S, T_S * 1000], None, "row 2: 1700000000000 looks like Unix milliseconds, and row 1 like Unix seconds; write one unit"),
        ([20240101, 20241301], None, "row 2: 20241301 is none of the dates as yyyymmdd"),
        ([20240101.5], None, "row 1: 20240101.5 is none of the dates"),
        ([202401021200, 202401021201], None, "row 1: 202401021200 may be yyyymmddhhmm, or milliseconds in 1976"),
        ([45_000.5], None, "row 1: 45000.5 is no time"),
        ([-T_S], None, "row 1: -1700000000 is no time"),
        ([float("nan")], None, "row 1: nan is no time"),
        ([float("inf")], None, "row 1: inf is no time"),
        ([2**64 - 1], pa.uint64(), "numbers beyond any time"),
        ([float(T_S)], pa.float32(), "it is float, which rounds today's Unix seconds"),
        (["01/02/2024"], None, "row 1: '01/02/2024' is neither a number nor an ISO 8601 date"),
        (["2024-01-02", "soon"], None, "row 2: 'soon' is neither"),
        (["2024-01-02", "1700000000"], None, "row 2: '1700000000' is a number, unlike row 1; write all times alike"),
        (["2024-02-30"], None, "row 1: '2024-02-30' is no date or time that there is"),
        (["2024-01-01T00:00:00+25:00"], None, "row 1: .* is no date or time that there is"),
        (["2024-01-01T00:00:00+01:75"], None, "row 1: .* is no date or time that there is"),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"], None, "row 2: .* has no zone, unlike row 1; write the zone in each row"),
        (["2024-01-01", "0001-01-01"], None, "row 2: '0001-01-01' is not between the years 1970 and 2199"),
        (["9999-12-31T23:59:59Z"], None, "is not between the years 1970 and 2199"),
        (
            [-62_135_596_800_000_000],
            pa.timestamp("us", "UTC"),
            "row 1: '0001-01-01 00:00:00.000000Z' is not between the years 1970 and 2199",
        ),
        ([2**62], pa.timestamp("s"), "row 1: .* is not between the years"),
        ([-(2**63)], pa.timestamp("ms", "UTC"), "row 1: .* is not between the years"),
        ([2**55], pa.timestamp("s", "Europe/Berlin"), "row 1: .* is not between the years"),
        ([2**31 - 1], pa.date32(), "row 1: .* is not between the years"),
        ([True], None, "bool is no time"),
        ([[1]], None, "list<.*> is no time"),
        ([5], pa.time64("us"), "time64.us. is no time"),
    ],
)
def test_a_time_that_would_be_a_guess_is_refused(cells: list[Any], kind: Any, says: str) -> None:
    with pytest.raises(
        EventFileError, match=f"events.parquet: column 'c'.*{says}" if not says.startswith("row") else f"events.parquet: column 'c', {says}"
    ):
        ms_of(cells, kind)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 7], pa.int8()),
        ([1, 7], pa.uint64()),
        ([1.0, 7.0], pa.float64()),
        ([1.0, 7.0], pa.float32()),
        ([Decimal("1.00"), Decimal("7.00")], pa.decimal128(10, 2)),
        (["1", "7.0"], pa.string()),
        ([" 1", "7 "], pa.large_string()),
        (["1", "7"], pa.string_view()),
        ([b"1", b"7"], pa.binary()),
        (["1", "7"], pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_an_id_is_the_same_in_every_type(cells: list[Any], kind: Any) -> None:
    assert read_ids(pa.array(cells, kind), PLACE).texts() == ["1", "7"]
    assert read_ids(pa.chunked_array([pa.array(cells[:1], kind), pa.array(cells[1:], kind)]), PLACE).texts() == ["1", "7"]


def test_ids_stay_exact_and_texts_stay_as_they_are() -> None:
    assert read_ids(pa.array([2**63 - 1, 2**53 + 1]), PLACE).texts() == [str(2**63 - 1), str(2**53 + 1)]
    assert read_ids(pa.array([Decimal(10) ** 30]), PLACE).texts() == [str(10**30)]
    assert read_ids(pa.array(["007", "a b", "ÄÖ", "1.5"]), PLACE).texts() == ["007", "a b", "ÄÖ", "1.5"]
    run_ends = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["1", "2"]))
    assert read_ids(run_ends, PLACE).texts() == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("cells", "kind", "says"),
    [
        ([1, None], pa.int64(), "row 2: an empty cell is no id; leave the row out, or give it one"),
        (["1", ""], None, "row 2: an empty cell is no id; leave the row out"),
        (["1", "  "], None, "row 2: '  ' is no id; leave the row out"),
        (["1", "1", "nan"], None, "row 3: 'nan' is a missing id that was written as text"),
        ([r"\N"], None, "row 1: .* is a missing id"),
        (["x" * 129], None, "row 1: .* is no id: it has 129 bytes; it must have 1 to 128"),
        ([1.0, float("nan")], None, "row 2: nan is no id: a number with a fraction"),
        ([1.5], None, "row 1: 1.5 is no id: a number with a fraction; write ids as integers or text"),
        ([2.0**53 + 2], None, r"row 1: .* is no exact id: double rounds whole numbers beyond 2\*\*53"),
        ([2.0**25], pa.float32(), r"row 1: .* is no exact id: float rounds whole numbers beyond 2\*\*24"),
        ([Decimal("1.25")], None, "row 1: .* is no id: a number with a fraction"),
        ([True], None, "bool is no id; write ids as text or integers"),
        ([datetime(2024, 1, 1, tzinfo=UTC)], None, "timestamp.* is no id"),
        ([[1]], None, "list<.* is no id"),
        ([b"\xff"], None, "row 1: .* is no UTF-8"),
        ([b"x" * 16], pa.binary(16), "fixed_size_binary.16. is no id"),
        ([None], pa.null(), "row 1: an empty cell is no id"),
    ],
)
def test_what_is_no_id_is_refused(cells: list[Any], kind: Any, says: str) -> None:
    with pytest.raises(EventFileError, match=f"events.parquet: column 'c'.*{says}"):
        read_ids(pa.array(cells, kind), PLACE)


def test_kinds_are_names_of_the_feature_spec() -> None:
    known = {"rating": 1, "click": 2}
    assert read_kinds(pa.array([" rating", "click"]).dictionary_encode(), PLACE, known).texts() == ["rating", "click"]
    unknown = r"row 2: 'thumb' is not in the feature spec \(known: click, rating\)"
    for cells, says in ((["rating", "thumb"], unknown), ([None], "row 1: an empty cell"), ([1], "int64 is no kind")):
        with pytest.raises(EventFileError, match=says):
            read_kinds(pa.array(cells), PLACE, known)


def test_values_are_numbers_or_missing() -> None:
    nan = float("nan")
    for cells in ([4, None], [4.0, nan], ["4", ""], ["4.0", "NA"], [" 4 ", r"\N"], [Decimal(4), None], [b"4", b"null"]):
        np.testing.assert_array_equal(read_values(pa.array(cells), PLACE), [4.0, nan])
    np.testing.assert_array_equal(read_values(pa.array([True, False, None]), PLACE), [1.0, 0.0, nan])
    np.testing.assert_array_equal(read_values(pa.array([None]), PLACE), [nan])
    for cells, says in (
        (["4", "good"], "row 2: 'good' is no number"),
        (["4,5"], "row 1: '4,5' is no number"),
        ([[1]], "list<.* is no number"),
    ):
        with pytest.raises(EventFileError, match=says):
            read_values(pa.array(cells), PLACE)


@pytest.mark.parametrize(
    "cell",
    [
        ["a", "b c"], ("a", None, "b c", "a"), '["a", "b c"]', "['a', 'b c']", "[a, b c]",
        "{a,b c}", '{a,"b c"}', "{'a', 'b c'}", "a|b c", " a | b c |", b"a|b c", [b"a", b"b c"],
        [{"id": 1, "name": "a"}, {"id": 2, "name": "b c"}], [{"genre": "a"}, {"genre": "b c"}],
        "[{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b c'}]", '[{"name": "a"}, {"name": "b c"}]',
    ],
)  # fmt: skip
def test_a_cell_names_its_categories_however_they_are_written(cell: object) -> None:
    assert category_names(cell, "|") == ("a", "b c")


def test_quotes_apostrophes_and_numbers_in_categories() -> None:
    assert category_names(r"[Drama, 'Children\'s']", "") == ("Drama", "Children's")
    assert category_names("""['Drama', "Children's"]""", "") == ("Drama", "Children's")
    assert category_names("[Children's, Sci-Fi]", "") == ("Children's", "Sci-Fi")
    assert category_names('{"a ""b"" c",d}', "") == ('a "b" c', "d")
    assert category_names([1, 2.0, Decimal(3), 1.5, float("nan")], "") == ("1", "2", "3", "1.5")
    assert category_names('["a, b"]', ",") == ("a, b",)
    assert category_names(28, "") == category_names("28", "") == category_names("[28.0]", "") == ("28",)
    assert [category_names(cell, "") for cell in (None, "", "  ", "[]", "{}", [], "null", '[""]', {"name": None})] == [()] * 9


def test_the_separator_is_one_for_the_whole_column() -> None:
    assert separator_of(["Books, used|Films", "Books, used"]) == "|"
    assert category_names("Books, used", "|") == ("Books, used",)
    assert separator_of(["a;b", "c"]) == ";"
    assert separator_of(["a, b", "c"]) == ","
    assert separator_of(["Sex &amp; the City, Drama"]) == ","
    assert separator_of(['["a, b"]', None, ["x|y"], "Drama"]) == ""
    assert category_names("a, b", ",") == ("a", "b")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("['a' 'b']", "is no list of names .an array printed by numpy"),
        ("[a [b] c]", "is no list of names"),
        ("['a', 'b', ...]", "was cut when it was printed"),
        ([["a"]], "holds a list where a name is expected"),
        ([{"id": 1, "label": "a"}], "has no field 'name' .fields: id, label"),
        ({"name": {"name": "a"}}, "a struct whose name is a struct"),
        ([True], "holds a bool"),
        ([float("inf")], "holds a number that is none"),
        ("a|" * 40_000, "has 80000 characters"),
        (b"\xff", "is no UTF-8"),
    ],
)
def test_categories_outside_the_contract_are_refused(cell: object, says: str) -> None:
    with pytest.raises(UnreadableCategories, match=says):
        category_names(cell, "|")
