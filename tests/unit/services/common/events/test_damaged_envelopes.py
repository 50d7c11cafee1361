"""Damaged values of topics that others write to: parsed, or refused as malformed."""

from __future__ import annotations

from google.protobuf import json_format
from google.protobuf.message import Message
from tunemesh.catalog.v1.catalog_item_pb2 import CatalogItem
from tunemesh.events.v1.control_pb2 import ControlRecord, EpochClaim
from tunemesh.events.v1.delta_pb2 import ReplicaStatus
from tunemesh.events.v1.exposure_pb2 import Exposure
from tunemesh.events.v1.feedback_pb2 import Feedback

from services.common.events.envelope import MalformedRecord, header, headers_for, parse_value
from tests.fuzzing import Damage

RIGHT: tuple[Message, ...] = (
    Feedback(feedback_id="f1", request_id="r1", user_id="ü1", item_id="7", kind="rating", value=4.5),
    CatalogItem(item_id="7", categories=["a", "b"]),
    Exposure(request_id="r1", user_id="u1", scores=[0.5, 0.25], features_block=b"\x00\xff"),
    ControlRecord(subject="epoch/ranker", version=3, epoch_claim=EpochClaim(model="ranker", epoch=2, source_offsets=[1, 2])),
    ReplicaStatus(replica_id="host", epoch=1, seq=-1, delta_offsets=[7]),
)
CONTENT_TYPES = ("application/protobuf", "application/json", "application/json; charset=utf-8")


def read_damaged_envelopes(num_inputs: int, *, seed: int) -> int:
    """Parse damaged values with damaged headers; return how many were refused. Anything but MalformedRecord escapes."""
    damage = Damage(seed)
    values = [message.SerializeToString() for message in RIGHT] + [json_format.MessageToJson(message).encode() for message in RIGHT]
    num_refused = 0
    for _ in range(num_inputs):
        value = damage.of_bytes(values)
        content_type = damage.random.choice(CONTENT_TYPES).encode()
        if damage.random.random() < 0.1:
            content_type = damage.of_bytes([content_type])
        headers = [*headers_for("tunemesh.events.v1.Feedback", "/test"), ("traceparent", value[:8])]
        headers = [(name, content_type if name == "content-type" else text) for name, text in headers]
        try:
            header(headers, "traceparent")
            parse_value(value, headers, type(damage.random.choice(RIGHT)))
        except MalformedRecord:
            num_refused += 1
    return num_refused


def test_damaged_envelopes_are_parsed_or_refused_as_malformed():
    assert 500 < read_damaged_envelopes(2_000, seed=6) < 2_000
