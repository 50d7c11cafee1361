"""The client and the mesh agree on what attributes are: both take the same, and make the same of it."""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemesh.events.v1.profile_pb2 import Profile

from services.common.events import attributes as rules
from services.common.events.wire.attributes import attributes_of_values
from tests.unit.services.common.events.test_attributes import ANYTHING, ATTRIBUTES, UNHURRIED, Refused, same
from tunemesh_client import InvalidRequest
from tunemesh_client import attributes as client


def by_client(given: Any) -> Any:
    message = Profile()
    try:
        client.write_attributes("context", given, message.attributes)
    except InvalidRequest as error:
        return error.details
    return attributes_of_values("context", message.attributes, Refused)


def by_mesh(given: Any) -> Any:
    try:
        return rules.attributes_of("context", given, Refused)
    except Refused as error:
        return str(error)


def agree(given: Any) -> None:
    ours, theirs = by_client(given), by_mesh(given)
    assert isinstance(ours, str) == isinstance(theirs, str), (ours, theirs)
    if isinstance(ours, str):
        assert ours.partition(":")[0].startswith("context")
        return
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in ours)


def test_the_limits_are_the_meshs() -> None:
    for name in ("MAX_ATTRIBUTES", "MAX_NAME_BYTES", "MAX_TEXT_BYTES", "MAX_ELEMENTS", "MAX_BYTES"):
        assert getattr(client, name) == getattr(rules, name), name


@UNHURRIED
@given(ATTRIBUTES)
def test_sound_attributes_arrive_as_they_are(given: Any) -> None:
    found = by_client(given)
    assert found.keys() == given.keys()
    assert all(same(found[name], given[name]) for name in given)


@UNHURRIED
@given(st.dictionaries(st.text(), ANYTHING, max_size=5))
def test_anything_is_taken_by_both_or_refused_by_both(given: Any) -> None:
    agree(given)


VALUES: list[Any] = [
    *(2**63 - 1, 2**63, -(2**63) - 1, 10**400, math.nan, math.inf, "", "x" * 16_384, "x" * 16_385, "\ud800", True, None, object()),
    *(np.int8(3), np.uint64(2**63), np.float32(0.5), np.bool_(False), np.str_("a"), np.datetime64("2024-03-09T10:20:30.25"), np.nan),
    *(np.array([1.5, 2], dtype=np.float16), np.array(["a"]), np.array([True]), np.array([[1.0]]), np.zeros(4_097), np.array([])),
    *([], (), ["a"], [1, 2.5], [2**53, -(2**53)], [2**53 + 1], ["a", 1], [True], [None], [math.inf], [["a"]], {"a": 1}, {1}),
    *(Decimal("1.5"), Decimal("NaN"), Decimal("sNaN"), Decimal("1e400"), date(2024, 3, 9), datetime(2024, 3, 9, 10), pd.NaT),
    *(pd.Timestamp("2024-03-09T10:20:30.25+05:30"), b"a", b"\xff", bytearray(b"a"), memoryview(b"a"), pd.NA, [date(2024, 3, 9)]),
]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_a_value_is_taken_by_both_or_refused_by_both(number: int) -> None:
    agree({"a": VALUES[number]})


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 128, "x" * 129, "é" * 64, "é" * 65, "\ud800", "Release date", 5])
def test_a_name_is_taken_by_both_or_refused_by_both(name: Any) -> None:
    agree({name: 1})


@pytest.mark.parametrize("times", [1, 10])
def test_both_have_the_same_bounds(times: int) -> None:
    agree({f"n{number}": number for number in range(1_024 * times)})
    agree({f"n{number}": number for number in range(1_024 * times + 1)})
    agree({f"n{number}": "x" * 16_382 for number in range(4 * times)})
    agree({f"n{number}": "x" * 16_382 for number in range(4 * times)} | {"m": True})
    agree({f"n{number}": [""] * 4_096 for number in range(15 * times)})
    agree({f"n{number}": [""] * 4_096 for number in range(16 * times)})


def test_what_is_wrong_is_named() -> None:
    assert by_client({"a": {"b": 1}}) == (
        "context.a: it is of type dict; it must be a text, a whole number, a finite number, true or false, a list of texts, "
        "or a list of finite numbers"
    )
