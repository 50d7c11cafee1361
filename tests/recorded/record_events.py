"""Records items, a profile and a feedback as others send them into events.json: by "noun/writer" the key, the value (base64), the headers.

Needs two environments, and no server (the registry is confluent-kafka's own mock):

    pip install "confluent-kafka[protobuf,json,avro,schemaregistry]==2.16.0" cloudevents==1.13.0
    pip install --target CE2 cloudevents==2.2.0
    PYTHONPATH=protos/gen python tests/recorded/record_events.py CE2

It runs itself a second time with the second SDK first on the path: both are called `cloudevents`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.events.v1 import feedback_pb2, profile_pb2

ITEM = {"item_id": "1001", "title": "Käse", "categories": ["Crime", "Drama"], "updated_at_ms": 1_700_000_000_000}
FEEDBACK = {"feedback_id": "f1", "request_id": "r1", "user_id": "u1", "item_id": "1001", "kind": "rating", "value": 4.5}
FEEDBACK |= {"accepted_at_ms": 1_700_000_000_000}
# In JSON as anybody writes them, in Protobuf as the contract has them.
ATTRIBUTES = {"year": 1995, "price": 7.5, "studio": "Käse", "adult": False, "moods": ["dark", "slow"], "embedding": [0.5, -1.25]}
VALUES = {
    "year": {"integer": 1995},
    "price": {"number": 7.5},
    "studio": {"text": "Käse"},
    "adult": {"boolean": False},
    "moods": {"texts": {"values": ["dark", "slow"]}},
    "embedding": {"numbers": {"values": [0.5, -1.25]}},
}
PROFILE = {"user_id": "1001", "updated_at_ms": 1_700_000_000_000}
# By noun: the fields in JSON, and the message.
NOUNS: dict[str, tuple[dict[str, Any], Any]] = {
    "item": (ITEM, catalog_item_pb2.CatalogItem(**ITEM)),
    "typed_item": ({**ITEM, "attributes": ATTRIBUTES}, catalog_item_pb2.CatalogItem(**ITEM, typed_attributes=VALUES)),
    "profile": ({**PROFILE, "attributes": ATTRIBUTES}, profile_pb2.Profile(**PROFILE, attributes=VALUES)),
    "feedback": (FEEDBACK, feedback_pb2.Feedback(**FEEDBACK)),
}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"
Recorded = tuple[str, Any, Any, Any]


def sdk_1(noun: str, fields: dict[str, Any], protobuf: bytes) -> Iterator[Recorded]:
    """The CloudEvents SDK 1.13."""
    from cloudevents.http import CloudEvent
    from cloudevents.kafka import to_binary, to_structured

    about = {"type": f"com.example.{noun}", "source": "/shop", "id": "e1", "partitionkey": "1001", "time": "2026-11-28T12:00:00Z"}
    about |= {"traceparent": TRACEPARENT}
    for name, typed in (("typed", {"datacontenttype": "application/json"}), ("untyped", {})):
        message = to_structured(CloudEvent(about | typed, fields))
        yield f"sdk1/structured/{name}", message.key, message.value, message.headers
    as_json, as_protobuf = about | {"datacontenttype": "application/json"}, about | {"datacontenttype": "application/protobuf"}
    message = to_binary(CloudEvent(as_json, fields))
    yield "sdk1/binary/json", message.key, message.value, message.headers
    message = to_binary(CloudEvent(as_protobuf, protobuf), data_marshaller=lambda data: data)
    yield "sdk1/binary/protobuf", message.key, message.value, message.headers
    message = to_structured(CloudEvent(as_protobuf, protobuf), data_marshaller=lambda data: data)
    yield "sdk1/structured/protobuf", message.key, message.value, message.headers


def sdk_2(noun: str, fields: dict[str, Any], protobuf: bytes) -> Iterator[Recorded]:
    """The CloudEvents SDK 2.2."""
    from cloudevents.core.bindings.kafka import to_binary, to_structured
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent

    about = {"type": f"com.example.{noun}", "source": "/shop", "id": "e1", "specversion": "1.0", "partitionkey": "1001"}
    for name, more, data in (
        ("json", {"datacontenttype": "application/json"}, fields),
        ("untyped", {}, fields),
        ("protobuf", {"datacontenttype": "application/protobuf"}, protobuf),
        ("list", {"datacontenttype": "application/json"}, [fields]),
    ):
        for mode, write in (("binary", to_binary), ("structured", to_structured)):
            message = write(CloudEvent(about | more, data), JSONFormat())
            yield f"sdk2/{mode}/{name}", message.key, message.value, message.headers


def confluent(fields: dict[str, Any], message: Any) -> Iterator[Recorded]:
    """Confluent's serializers: Protobuf and JSON Schema, and Avro, which the mesh does not read."""
    from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    registry = SchemaRegistryClient.new_client({"url": "mock://"})
    schema = json.dumps({"title": "Row", "type": "object", "properties": {}})
    plain = ["string", "long", "double", "boolean", {"type": "array", "items": ["string", "double"]}]
    types: dict[type, Any] = {str: "string", int: "long", float: "double", list: {"type": "array", "items": "string"}}
    types[dict] = {"type": "map", "values": plain}
    rows = [{"name": name, "type": types[type(value)]} for name, value in fields.items()]
    avro = json.dumps({"type": "record", "name": "Row", "fields": rows})
    in_header = {"schema.id.serializer": header_schema_id_serializer}
    for name, serializer, value in (
        ("protobuf", ProtobufSerializer(type(message), registry, {"use.deprecated.format": False}), message),
        ("protobuf-header", ProtobufSerializer(type(message), registry, {"use.deprecated.format": False} | in_header), message),
        ("json", JSONSerializer(schema, registry), fields),
        ("avro", AvroSerializer(registry, avro), fields),
    ):
        headers: list[tuple[str, bytes]] = []
        raw = serializer(value, SerializationContext("topic", MessageField.VALUE, headers))
        yield f"confluent/{name}", b"1001", raw, dict(headers)


def record(second_sdk: str) -> None:
    """Write the file."""
    recorded: dict[str, Any] = {}
    for noun, (fields, message) in NOUNS.items():
        raw = message.SerializeToString()
        found = sdk_2(noun, fields, raw) if second_sdk == "-" else [*sdk_1(noun, fields, raw), *confluent(fields, message)]
        for writer, key, value, headers in found:
            recorded[f"{noun}/{writer}"] = {
                "key": (key if isinstance(key, bytes) else str(key).encode()).decode(),
                "value": base64.b64encode(value if isinstance(value, bytes) else str(value).encode()).decode(),
                "headers": {name: base64.b64encode(each).decode() for name, each in headers.items()},
            }
    if second_sdk == "-":
        sys.stdout.write(json.dumps(recorded))
        return
    paths = {"PYTHONPATH": os.pathsep.join([second_sdk, os.environ["PYTHONPATH"]])}
    second = subprocess.run([sys.executable, __file__, "-"], env=os.environ | paths, check=True, capture_output=True)
    recorded |= json.loads(second.stdout)
    Path(__file__).with_name("events.json").write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
