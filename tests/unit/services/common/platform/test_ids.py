from __future__ import annotations

import random

import numpy as np
import pytest

from services.common.events.envelope import MalformedRecord
from services.common.events.wire.catalog import read_change
from services.common.events.wire.feedback import feedback_of, parse_feedback
from services.common.platform.ids import canonical_id, canonical_ids
from tunemesh_client import Feedback, InvalidRequest
from tunemesh_client import ids as client_ids
from tunemesh_client.events import check, record_of

SAME_AS_ONE = ["1", "1.0", "1.00", " 1", "1 ", "\t1.0\n", "\u00a01"]
KEPT = [
    "007",
    "007.0",
    "1.5",
    "1.01",
    "1e5",
    "1e+16",
    "+1.0",
    "1.",
    ".0",
    "--1.0",
    "1.0.0",
    "1,0",
    "\u0661.0",
    "a b",
    "ABC",
    "u-1.0",
    "nan",
    "e\u0301",
    "0x1.0",
]


@pytest.mark.parametrize("text", SAME_AS_ONE)
def test_a_whole_number_is_one_id_however_it_was_written(text: str) -> None:
    assert canonical_id(text) == canonical_ids([text])[0] == client_ids.canonical_id(text, "user_id") == "1"


@pytest.mark.parametrize("text", KEPT)
def test_every_other_text_stays_as_it_is(text: str) -> None:
    assert canonical_id(text) == canonical_ids([text])[0] == client_ids.canonical_id(text, "user_id") == text


def test_signs_zeros_and_blanks() -> None:
    assert [canonical_id(text) for text in ("-7.0", "-0.0", "0.0", "-0", "  ", "")] == ["-7", "0", "0", "-0", "", ""]
    assert canonical_id("9" * 5_000 + ".0") == "9" * 5_000


def test_the_client_the_mesh_and_its_lists_agree_and_a_canonical_id_stays_one() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("0015.- e\t\u2003x", k=draw.randrange(8))) for _ in range(20_000)]
    canonical = [canonical_id(text) for text in texts]
    assert [client_ids.canonical_id(text, "user_id") for text in texts] == canonical
    assert [*canonical_ids(texts)] == client_ids.canonical_ids(texts, "candidates") == canonical
    assert [canonical_id(text) for text in canonical] == canonical


def test_the_client_takes_the_numbers_of_python_and_pandas() -> None:
    given = [1, 1.0, np.int64(1), np.uint8(1), np.float64(1.0), np.float32(1.0), "1", "1.0"]
    assert client_ids.canonical_ids(given, "candidates") == ["1"] * len(given)
    assert client_ids.canonical_id(2**60 + 1, "user_id") == str(2**60 + 1)


@pytest.mark.parametrize("given", [None, True, float("nan"), float("inf"), 1.5, 2.0**54, np.float64("nan"), b"1", ["1"]])
def test_what_is_no_id_is_refused_with_its_field(given: object) -> None:
    with pytest.raises(InvalidRequest, match=r"user_id: .* is no id; give a text or a whole number"):
        client_ids.canonical_id(given, "user_id")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="user_id"):
        check(Feedback("r", given, "rating", item_id="i"))  # type: ignore[arg-type]


def test_feedback_of_a_float_user_is_keyed_and_read_as_the_same_user() -> None:
    for user_id in (1.0, "1.0", 1, "1"):
        record = record_of(Feedback("r", user_id, "rating", item_id=50.0), source="/s", accepted_at_ms=1, traceparent="")
        assert record.key == b"1"
        feedback = parse_feedback(record.value, record.headers)
        assert (feedback.user_id, feedback.item_id) == ("1", "50")
    foreign = Feedback("r", "1", "rating", item_id="50").to_proto()
    foreign.user_id, foreign.item_id = "1.0", " 50 "  # as a producer of another make writes them
    assert (feedback_of(foreign).user_id, feedback_of(foreign).item_id) == ("1", "50")


def test_an_item_of_the_catalogue_is_named_as_feedback_names_it() -> None:
    json = [("content-type", b"application/json")]
    assert read_change(b"50.0", b'{"item_id": "50.0"}', json).item_id == "50"
    assert read_change(b"50.0", b'{"title": "x"}', json).item_id == read_change(b"50.0", None, None).item_id == "50"
    with pytest.raises(MalformedRecord, match="item_id"):
        read_change(b" ", b'{"item_id": " "}', json)
