"""Typed attributes: what JSON, Parquet cells and numpy may bring, which kind it becomes, and what is refused by name."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.events import attributes as rules
from services.common.events.attributes import Attribute, Attributes, as_ids, as_numbers, attributes_of, check, kind_of, size_of

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = {"text", "integer", "number", "boolean", "texts", "numbers"}


class Refused(Exception):
    """What a caller of the rules raises."""


def read(given: Any) -> dict[str, Attribute]:
    return attributes_of("context", given, Refused)


def one(raw: Any) -> Attribute | None:
    return read({"a": raw}).get("a")


def same(left: Attribute | None, right: Attribute | None) -> bool:
    """Equal, and of the same Python type all through: 1, 1.0 and True are equal to Python."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(
    ("raw", "value", "kind"),
    [
        ("Oslo", "Oslo", "text"),
        ("", "", "text"),
        ("5", "5", "text"),
        (5, 5, "integer"),
        (-(2**63), -(2**63), "integer"),
        (5.0, 5.0, "number"),
        (1e308, 1e308, "number"),
        (True, True, "boolean"),
        (["a", ""], ("a", ""), "texts"),
        ([], (), "texts"),
        ([1, 2.5], (1.0, 2.5), "numbers"),
        ([2**53], (float(2**53),), "numbers"),
    ],
)
def test_json_keeps_the_kind_in_which_it_was_written(raw: Any, value: Attribute, kind: str) -> None:
    found = one(json.loads(json.dumps(raw)))
    assert same(found, value)
    assert kind_of(value) == kind


def test_null_is_absent() -> None:
    assert read({"city": None, "age": 31}) == {"age": 31}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (math.nan, r"context\.a: nan is not finite; leave it out, or null"),
        (-math.inf, r"context\.a: -inf is not finite"),
        ([1.0, math.nan], r"context\.a\[1\]: nan is not finite"),
        (2**63, r"context\.a: a whole number of 64 bits is out of int64's range; write it as text"),
        (10**400, r"a whole number of 1329 bits"),
        ([1, 2**53 + 1], r"context\.a\[1\]: 9007199254740993 is beyond 2\*\*53"),
        ([10**400], r"context\.a\[0\]: a whole number of 1329 bits"),
        ({"street": "x"}, r"context\.a: it is an object; it must be a text, a whole number, .* or a list of finite numbers"),
        ([["a"]], r"context\.a\[0\]: it is a list; an element of a list is a text or a finite number"),
        ([{"a": 1}], r"context\.a\[0\]: it is an object"),
        (["a", None], r"context\.a\[1\]: it is null"),
        ([True], r"context\.a\[0\]: it is true or false"),
        (["a", 1], r"context\.a: it has texts and numbers"),
        ("x" * 16_385, r"context\.a: it has 16385 bytes; a text has at most 16384"),
        ("é" * 8_193, r"context\.a: it has 16386 bytes"),
        (["x" * 16_385], r"context\.a\[0\]: it has 16385 bytes"),
        ([0.0] * 4_097, r"context\.a: it has 4097 elements; a list has at most 4096"),
        ("\ud800", r"context\.a: it has half of a surrogate pair"),
        (b"\xff", r"context\.a: it is binary that is no UTF-8"),
        (object(), r"context\.a: it is of type object; it must be"),
        (timedelta(1), r"context\.a: it is of type timedelta"),
        (pd.NaT, r"context\.a: it is no time \(NaT\)"),
        (np.array([[1.0]]), r"context\.a\[0\]: it is a list"),
    ],
)
def test_what_is_no_value_is_refused_with_its_name(raw: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        one(raw)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", r"context: the name '' is empty; a name is 1 to 128 bytes of printable text without blanks around it"),
        (" city", r"context: the name ' city' has blanks around it"),
        ("a\nb", r"context: the name 'a\\nb' has characters that cannot be printed"),
        ("\ud800", r"has characters that cannot be printed"),
        ("é" * 65, r"has 130 bytes"),
        ("x" * 10_000, r"context: the name 'x{80}' has 10000 bytes"),
        (5, r"context: the name 5 is a number"),
    ],
)
def test_what_is_no_name_is_refused(name: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        read({name: 1})


@pytest.mark.parametrize("name", ["city", "Release date", "größe", "都市", "user:city", "x" * 128])
def test_names_may_be_of_any_language(name: str) -> None:
    assert read({name: 1}) == {name: 1}


@pytest.mark.parametrize(("given", "called"), [([], "a list"), ("{}", "a text"), (None, "null"), (5, "a number")])
def test_what_is_no_object_is_refused(given: Any, called: str) -> None:
    with pytest.raises(Refused, match=f"context: it is {called}; it must be an object"):
        read(given)


@pytest.mark.parametrize("times", [1, 10])
def test_the_number_of_attributes_is_bounded(times: int) -> None:
    many = {f"n{number}": number for number in range(rules.MAX_ATTRIBUTES)}
    assert len(read(many)) == rules.MAX_ATTRIBUTES
    more = {f"n{number}": number for number in range(rules.MAX_ATTRIBUTES * times + 1)}
    with pytest.raises(Refused, match=rf"context: there are {len(more)}; at most 1024 are allowed"):
        read(more)


@pytest.mark.parametrize("times", [1, 10])
def test_attributes_are_bounded_together(times: int) -> None:
    whole = {f"n{number}": "x" * (rules.MAX_TEXT_BYTES - 2) for number in range(4)}
    assert size_of(whole) == rules.MAX_BYTES
    check("context", whole, Refused)
    more = {**whole, **{f"{number}": "x" * (rules.MAX_TEXT_BYTES - 2) for number in range(4 * (times - 1))}, "m": True}
    with pytest.raises(Refused, match=rf"context: together they have {size_of(more)} bytes; at most 65536 are allowed"):
        check("context", more, Refused)


def test_lists_of_empty_texts_are_bounded_too() -> None:
    check("context", {f"n{number}": ("",) * 4_096 for number in range(15)}, Refused)
    with pytest.raises(Refused, match=r"context: together they have \d+ bytes; at most 65536"):
        check("context", {f"n{number}": ("",) * 4_096 for number in range(150)}, Refused)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (np.int32(5), 5),
        (np.uint64(2**63 - 1), 2**63 - 1),
        (np.float32(0.5), 0.5),
        (np.float64(2.5), 2.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([0.5, 1.0], dtype=np.float32), (0.5, 1.0)),
        (np.array([1, 2]), (1.0, 2.0)),
        (np.array(["a", "b"]), ("a", "b")),
        (np.array([]), ()),
        ([np.float32(0.5), np.int64(2)], (0.5, 2.0)),
        (np.datetime64("2024-03-09T10:20:30.250"), 1_709_979_630_250),
        (np.datetime64("2024-03-09T10:20:30.250999999", "ns"), 1_709_979_630_250),
        (pd.Timestamp("2024-03-09T10:20:30.250Z"), 1_709_979_630_250),
        (datetime(2024, 3, 9, 10, 20, 30, 250_999), 1_709_979_630_250),
        (datetime(2024, 3, 9, 12, 20, 30, 250_000, tzinfo=timezone(timedelta(hours=2))), 1_709_979_630_250),
        (datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), -1),
        (date(1970, 1, 2), 86_400_000),
        (Decimal("7.50"), 7.5),
        (b"k\xc3\xa4se", "käse"),
    ],
)
def test_cells_and_values_of_numpy_become_a_kind(raw: Any, value: Attribute) -> None:
    assert same(one(raw), value)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array(["a", None]), ["a", None]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([b"a", None], pa.binary()), ["a", None]),
        (pa.array([1, None], pa.int8()), [1, None]),
        (pa.array([2**63 - 1, None], pa.uint64()), [2**63 - 1, None]),
        (pa.array([0.5, None], pa.float16()), [0.5, None]),
        (pa.array([0.5, None], pa.float32()), [0.5, None]),
        (pa.array([0.5, None], pa.float64()), [0.5, None]),
        (pa.array([Decimal("1.25"), None], pa.decimal128(10, 2)), [1.25, None]),
        (pa.array([True, None]), [True, None]),
        (pa.array([1, None], pa.timestamp("s")), [1_000, None]),
        (pa.array([1, None], pa.timestamp("ms", "Europe/Berlin")), [1, None]),
        (pa.array([1_999, None], pa.timestamp("us")), [1, None]),
        (pa.array([1_999_000, None], pa.timestamp("ns")), [1, None]),
        (pa.array([1, None], pa.date32()), [86_400_000, None]),
        (pa.array([["a", "b"], None, []], pa.list_(pa.string())), [("a", "b"), None, ()]),
        (pa.array([[1, 2], None], pa.large_list(pa.int32())), [(1.0, 2.0), None]),
        (pa.array([[0.5, 1.0], None], pa.list_(pa.float32(), 2)), [(0.5, 1.0), None]),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else None,
)
def test_columns_of_parquet_become_kinds(column: pa.Array, values: list[Attribute | None]) -> None:
    found = [one(cell) for cell in column.to_pylist()]
    assert all(map(same, found, values)), found
    # pandas makes other types of the same cells, and a list one of numpy's arrays.
    assert all(map(same, map(one, column.slice(0, 1).to_pandas()), values[:1]))


@pytest.mark.parametrize(
    ("value", "ids"),
    [("5", ("5",)), (" 5.0", ("5",)), (5, ("5",)), (5.0, ("5",)), (5.5, ("5.5",)), (-7.0, ("-7",)), (1e300, (str(int(1e300)),))],
)
def test_one_id_whoever_wrote_it(value: Attribute, ids: tuple[str, ...]) -> None:
    assert as_ids("city", value, Refused) == ids


def test_ids_and_numbers_of_every_kind() -> None:
    assert as_ids("a", True, Refused) == ("true",)
    assert as_ids("a", ("x", "1.0"), Refused) == ("x", "1")
    assert as_ids("a", (), Refused) == ()
    assert as_numbers("a", 5, Refused) == (5.0,)
    assert as_numbers("a", True, Refused) == (1.0,)
    assert as_numbers("a", (1.0, 2.0), Refused) == (1.0, 2.0)
    assert as_numbers("a", (), Refused) == ()
    with pytest.raises(Refused, match=r"item\.a: it is a list of numbers; an id is a text"):
        as_ids("item.a", (1.0,), Refused)
    with pytest.raises(Refused, match=r"item\.a: it is a text; it must be a number"):
        as_numbers("item.a", "5", Refused)
    with pytest.raises(Refused, match=r"item\.a: it is a list; it must be a number"):
        as_numbers("item.a", ("5",), Refused)


NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Attribute] = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    FINITE,
    st.booleans(),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=10), max_size=5).map(tuple),
    st.lists(FINITE, max_size=5).map(tuple),
)
ATTRIBUTES: st.SearchStrategy[Attributes] = st.dictionaries(NAMES, VALUES, max_size=8)
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=8), st.decimals(), st.datetimes(), st.dates()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4), st.tuples(inner)),
    max_leaves=12,
)


@UNHURRIED
@given(ATTRIBUTES)
def test_what_keeps_the_rules_is_read_as_it_is_also_through_json(attributes: Attributes) -> None:
    assert all(map(same, read(attributes).values(), attributes.values()))
    again = read(json.loads(json.dumps(attributes)))
    assert list(again) == list(attributes)
    assert all(map(same, again.values(), attributes.values()))
    assert size_of(again) == size_of(attributes)


@UNHURRIED
@given(st.one_of(ANYTHING, st.dictionaries(st.text(), ANYTHING, max_size=6)))
def test_anything_is_read_or_refused_and_what_is_read_keeps_the_rules(given: Any) -> None:
    try:
        found = read(given)
    except Refused as error:
        assert str(error).startswith("context")
        return
    check("again", found, Refused)
    assert all(kind_of(value) in KINDS for value in found.values())
    assert all(map(same, read(found).values(), found.values()))  # what was read once is not changed by reading it again
    json.dumps(found, allow_nan=False)


@UNHURRIED
@given(VALUES)
def test_every_value_has_ids_or_numbers_and_they_are_sound(value: Attribute) -> None:
    wanted = 0
    try:
        assert all(isinstance(each, str) for each in as_ids("a", value, Refused))
        wanted += 1
    except Refused:
        pass
    try:
        assert all(math.isfinite(each) for each in as_numbers("a", value, Refused))
        wanted += 1
    except Refused:
        pass
    assert wanted >= 1
