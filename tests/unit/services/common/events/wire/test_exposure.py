import pytest
from tunemesh.events.v1 import exposure_pb2

from services.common.events.envelope import MalformedRecord
from services.common.events.wire.exposure import parse_exposure, read_exposure

NOW_MS = 1_700_000_000_000
SHOWN = {
    "request_id": "r1",
    "user_id": "u1",
    "exposed_at_ms": NOW_MS,
    "item_ids": ["a", "b", "c"],
    "features_block": b"?",
    "schema_hash": "s",
    "propensities": [0.5, 0.25, 1.0],
    "experiment": "colours",
    "variant": "blue",
    "model_version": "3.14",
    "degraded_reason": "ranker_unavailable",
    "idempotency_key": "k",
    "candidates_given": True,
    "scores": [0.75, 0.5, 0.25],
    "reasons": ["popular", "similar_to:7,popular", "cold_start"],
}


def value(**changes) -> bytes:
    return exposure_pb2.Exposure(**(SHOWN | changes)).SerializeToString()


def test_an_exposure_is_read_whole() -> None:
    read = read_exposure(value(), [("traceparent", b"00-a-b-01")], NOW_MS)
    for name, shown in SHOWN.items():
        assert getattr(read, name) == (tuple(shown) if isinstance(shown, list) else shown)
    assert read.traceparent == "00-a-b-01"


def test_scores_and_reasons_are_left_out_for_who_does_not_want_them() -> None:
    read = read_exposure(value(), None, NOW_MS, with_scores=False)
    assert (read.scores, read.reasons, read.item_ids) == ((), (), ("a", "b", "c"))


def test_what_the_request_brought_is_read_for_who_asks() -> None:
    raw = value(context={"page": {"text": "home"}}, profile={"age": {"integer": 31}})
    read = parse_exposure(raw, None, with_request=True)
    assert (read.context, read.profile) == ({"page": "home"}, {"age": 31})
    for other in (parse_exposure(raw, None), read_exposure(raw, None, NOW_MS), read_exposure(raw, None, NOW_MS, with_scores=False)):
        assert (other.context, other.profile) == ({}, {})
    with pytest.raises(MalformedRecord, match=r"profile\.age: it has no value"):
        parse_exposure(value(profile={"age": {}}), None, with_request=True)


def test_ids_of_the_same_item_are_one_string() -> None:
    item_id = "an id that is not interned by itself"
    first, second = (read_exposure(value(item_ids=[item_id], propensities=[]), None, NOW_MS) for _ in range(2))
    assert first.item_ids[0] is second.item_ids[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request_id": ""}, "request_id: it is empty"),
        ({"user_id": "ü" * 65}, "user_id: it has 130 bytes"),
        ({"exposed_at_ms": 0}, "exposed_at_ms: 0 is not a time"),
        ({"exposed_at_ms": NOW_MS + 3_600_000}, "exposed_at_ms: it is 3600000 ms in the future"),
        ({"item_ids": []}, "item_ids: there are none"),
        ({"item_ids": ["a", "", "c"]}, r"item_ids\[1\]: it is empty"),
        ({"item_ids": ["a", "b", "x" * 129]}, r"item_ids\[2\]: it has 129 bytes"),
        ({"propensities": [1.0]}, "propensities: there are 1 for 3 items"),
    ],
)
def test_an_exposure_that_breaks_the_contract_is_malformed_and_parsed_all_the_same(changes, said) -> None:
    with pytest.raises(MalformedRecord, match=said):
        read_exposure(value(**changes), None, NOW_MS)
    assert parse_exposure(value(**changes), None).variant == "blue"
