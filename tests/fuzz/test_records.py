"""100,000 nearly right records for each reader of what others write: each is read, or refused as malformed with its reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.wire import profile
from services.common.events.wire.catalog import read_change
from services.common.events.wire.exposure import read_exposure
from services.common.events.wire.feedback import read_feedback
from services.common.events.wire.generation import read_generation
from tests.fuzz.records import NOW_MS, Triple, nearly_right, with_attributes, written_by_the_router

pytestmark = [pytest.mark.deep]

RECORDED: list[Triple] = [
    (each["key"].encode(), base64.b64decode(each["value"]), [(name, base64.b64decode(raw)) for name, raw in each["headers"].items()])
    for each in json.loads((Path(__file__).parents[1] / "recorded" / "events.json").read_text(encoding="utf-8")).values()
]
READERS: dict[str, Callable[[Triple], Any]] = {
    "catalogue": lambda record: read_change(*record),
    "profile": lambda record: profile.read_change(*record),
    "feedback": lambda record: read_feedback(record[1], record[2], NOW_MS),
    "exposure": lambda record: read_exposure(record[1], record[2], NOW_MS),
    "generation": lambda record: read_generation(record[1], record[2], NOW_MS),
    "samples": lambda record: parse_value(record[1], record[2], SampleRecord),
}


BY_ROUTER = written_by_the_router()
WITH_ATTRIBUTES = with_attributes()


@pytest.mark.parametrize("noun", BY_ROUTER)
def test_what_the_router_writes_is_read(noun: str) -> None:
    for record in BY_ROUTER[noun]:
        assert READERS[noun](record).request_id == "r1"


@pytest.mark.parametrize("noun", WITH_ATTRIBUTES)
def test_what_has_attributes_is_read(noun: str) -> None:
    for record in WITH_ATTRIBUTES[noun]:
        assert len(READERS[noun](record).attributes) >= 7


@pytest.mark.parametrize("reader", READERS)
def test_a_nearly_right_record_is_read_or_refused(reader: str) -> None:
    # Of the others' records there are many: without their own weight, those that the router alone writes would hardly be drawn.
    originals = RECORDED + [each for each in BY_ROUTER.get(reader, []) + WITH_ATTRIBUTES.get(reader, []) for _ in range(10)]
    read, refused = 0, 0
    for record in nearly_right(originals, 100_000, seed=len(reader)):
        try:
            READERS[reader](record)
            read += 1
        except MalformedRecord as error:
            assert str(error)
            refused += 1
    assert refused > 10_000
    assert read > 1_000
