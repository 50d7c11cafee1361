#!/bin/bash
# protobuf 7.36 for Python: with ignore_unknown_fields, json_format takes a text, or a list, in place of a message and drops it silently.
#
# In JSON a message is an object; anything else in its place is an error, and without the option ParseDict says so. With ignore_unknown_fields=True
# it goes through the text's characters (the list's elements) as if they were names of fields, knows none of them, ignores them all, and leaves an
# empty message: what was there is lost without a word. A character or name that is half a surrogate pair ends it in a SystemError.
#
# Versions: protobuf 7.36.2, Python 3.11, Linux x86-64.
# Seen:     {"options": "java"}: accepted, options present and empty; {"options": ["java"]}: the same; "\ud800": SystemError
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check protobuf==7.36.2
"$folder/venv/bin/python" << 'PYTHON'
import sys

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto


def outcome(value: object) -> str:
    message = FileDescriptorProto()
    try:
        json_format.ParseDict({"options": value}, message, ignore_unknown_fields=True)
    except (json_format.ParseError, SystemError) as error:
        return type(error).__name__
    return f"accepted, options {'present' if message.HasField('options') else 'absent'}, {message.options.ByteSize()} bytes"


seen = [outcome("java"), outcome(["java"]), outcome("\ud800")]
print(f'text: {seen[0]}; list: {seen[1]}; "\\ud800": {seen[2]}')
if seen != ["accepted, options present, 0 bytes"] * 2 + ["SystemError"]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
