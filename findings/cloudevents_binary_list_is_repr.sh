#!/bin/bash
# cloudevents (SDK for Python) 2.2.0: in binary mode, data that is a list is written as Python's repr of it and labelled application/json.
#
# Binary mode puts the data into the message as its datacontenttype says. A dict becomes JSON; a list becomes str(list), with single quotes and None and
# True, which no JSON reader takes, and the header still says application/json. Structured mode writes the same list as JSON.
#
# Versions: cloudevents 2.2.0 (python-dateutil 4.0.0); Python 3.11.
# Seen:     binary: [{'id': 1, 'sold': None}] (application/json)
#           structured: the same data as [{"id": 1, "sold": null}]
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check cloudevents==2.2.0
"$folder/venv/bin/python" - << 'PYTHON'
import json
import sys

from cloudevents.core.bindings.kafka import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

about = {"type": "com.example.sale", "source": "/shop", "id": "1", "specversion": "1.0", "datacontenttype": "application/json"}
event = CloudEvent(about, [{"id": 1, "sold": None}])
binary, structured = to_binary(event, JSONFormat()), to_structured(event, JSONFormat())
value = binary.value if isinstance(binary.value, str) else binary.value.decode()
print(f"binary: {value} ({binary.headers['content-type'].decode()})")
print(f"structured: the same data as {json.dumps(json.loads(structured.value)['data'])}")
if value != "[{'id': 1, 'sold': None}]":
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
