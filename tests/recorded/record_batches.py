"""Records batches as librdkafka and Java compress them into kafka_batches.json: by "writer/codec" the bytes of a log segment, base64.

Needs an Apache Kafka 4 that is running (KAFKA_HOME, its port, its log directory) and a Python with confluent-kafka 2.16:

    KAFKA_HOME=… python tests/recorded/record_batches.py PORT LOG_DIR

librdkafka compresses itself; Java's codecs are the console producer's. Five records each: key item-N, value "value N " forty times, header
n=N.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

CODECS = ("gzip", "snappy", "lz4", "zstd")
NUM_RECORDS = 5


def main() -> None:
    """Write the file."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    home, servers, log_dir = Path(os.environ["KAFKA_HOME"]), f"127.0.0.1:{sys.argv[1]}", Path(sys.argv[2])
    admin, recorded = AdminClient({"bootstrap.servers": servers}), {}
    for codec in CODECS:
        for writer in ("librdkafka", "java"):
            topic = f"recorded-{writer}-{codec}"
            admin.create_topics([NewTopic(topic, 1)])[topic].result()
            if writer == "librdkafka":
                producer = Producer({"bootstrap.servers": servers, "compression.type": codec, "linger.ms": 500})
                for number in range(NUM_RECORDS):
                    producer.produce(topic, key=f"item-{number}", value=f"value {number} " * 40, headers=[("n", b"%d" % number)])
                producer.flush()
            else:
                lines = "".join(f"n:{number}\titem-{number}\t{f'value {number} ' * 40}\n" for number in range(NUM_RECORDS))
                command = [home / "bin/kafka-run-class.sh", "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", servers]
                command += ["--topic", topic, "--compression-codec", codec, "--timeout", "1000", "--batch-size", "100000"]
                command += ["--reader-property", "parse.key=true", "--reader-property", "parse.headers=true"]
                subprocess.run(command, input=lines.encode(), check=True)
            segment = (log_dir / f"{topic}-0" / "00000000000000000000.log").read_bytes()
            recorded[f"{writer}/{codec}"] = base64.b64encode(segment).decode()
    Path(__file__).with_name("kafka_batches.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
