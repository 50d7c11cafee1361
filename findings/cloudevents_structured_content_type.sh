#!/bin/bash
# cloudevents (SDK for Python) 1.13.0: a structured Kafka message is labelled with the content type of its data, not as a CloudEvent.
#
# The Kafka binding says that a structured message has the content type of the event's format, application/cloudevents+json, by which receivers tell
# it from binary mode. to_structured of cloudevents.kafka writes the event's datacontenttype into the header instead: the value is a JSON object with
# data_base64, and the header says application/protobuf. Without datacontenttype there is no header at all. The SDK 2.2 labels it right.
#
# Versions: cloudevents 1.13.0 (deprecation 2.1.0, packaging 26.4); Python 3.11.
# Seen:     data is Protobuf: content-type application/protobuf, the value begins with {
#           data is JSON: content-type application/json, the value begins with {
#           no datacontenttype: no content-type, the value begins with {
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check cloudevents==1.13.0 deprecation==2.1.0 packaging==26.4
"$folder/venv/bin/python" - << 'PYTHON'
import sys

from cloudevents.http import CloudEvent
from cloudevents.kafka import to_structured

about = {"type": "com.example.item", "source": "/shop", "id": "1"}
seen = []
for name, more, data in (
    ("data is Protobuf", {"datacontenttype": "application/protobuf"}, b"\x0a\x041001"),
    ("data is JSON", {"datacontenttype": "application/json"}, {"item_id": "1001"}),
    ("no datacontenttype", {}, {"item_id": "1001"}),
):
    message = to_structured(CloudEvent(about | more, data), data_marshaller=None if isinstance(data, dict) else lambda raw: raw)
    label = message.headers.get("content-type")
    seen.append(label.decode() if label else None)
    print(f"{name}: {'content-type ' + seen[-1] if label else 'no content-type'}, the value begins with {message.value[:1].decode()}")
if seen != ["application/protobuf", "application/json", None]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
