"""The trainer as a real process on a real broker, and the sample log that it learns from. Runs in the ml environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from kafka import KafkaProducer
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import BasePointer
from tunemesh.samples.v1.sample_pb2 import SampleRecord
from tunemesh.trainer.v1 import trainer_service_pb2 as pb
from tunemesh.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from services.common.platform.artifacts import read_artifact
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.trainer.kafka_logs import KafkaDeltaLog
from tests.limits import seconds
from tests.trainer_fakes.replica import Follower
from tests.trainer_fakes.sample_logs import SPEC

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Topics:
    """One mesh's topics on a shared broker; the samples may be shared too."""

    samples: str
    control: str
    deltas: str
    bases: str
    dead_letters: str
    replicas: str

    @classmethod
    def create(cls, topics: Callable[..., str], samples: str) -> Topics:
        return cls(samples, topics("control"), topics("deltas"), topics("bases"), topics("dlq"), topics("replicas"))


def environment(bootstrap: str, topics: Topics, folder: Path, num_partitions: int, **settings: object) -> dict[str, str]:
    """Variables of a trainer that keeps everything in `folder`; settings are field names of TrainerSettings."""
    fields = {
        "port": 0,
        "samples_topic": topics.samples,
        "control_topic": topics.control,
        "deltas_topic": topics.deltas,
        "bases_topic": topics.bases,
        "dead_letters_topic": topics.dead_letters,
        "replicas_topic": topics.replicas,
        **settings,
    }
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "TUNEMESH_USER_PARTITIONS": str(num_partitions),
        "TUNEMESH_ARTIFACTS_URL": str(folder / "artifacts"),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        **{f"TUNEMESH_TRAINER_{name.upper()}": str(value) for name, value in fields.items()},
    }


class TrainerProcess:
    """`python -m services.trainer`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        paths = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos' / 'gen'}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_", "OTEL_"))}
        command = [sys.executable, "-m", "services.trainer"]
        self._process = subprocess.Popen(
            command, env={**clean, "PYTHONPATH": paths, **env}, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self.port = 0
        self._stub: TrainerServiceStub | None = None
        self._channel: grpc.Channel | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            match = re.search(r"READY \S+ \S+:(\d+)$", line.rstrip("\n"))
            if match:
                self.port = int(match[1])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stub(self) -> TrainerServiceStub | None:
        """The control API, None as long as the server is not bound."""
        if self._stub is None and self.port:
            self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
            self._stub = TrainerServiceStub(self._channel)
        return self._stub

    def status(self) -> pb.GetStatusResponse | None:
        """The status, None as long as the epoch has not begun."""
        stub = self.stub()
        if stub is None:
            return None
        try:
            response: pb.GetStatusResponse = stub.GetStatus(pb.GetStatusRequest(), timeout=seconds(30))
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            raise
        return response

    def until(self, condition: Callable[[pb.GetStatusResponse], bool], timeout_s: float = 120.0) -> pb.GetStatusResponse:
        """Poll the status until it meets the condition."""
        deadline = time.monotonic() + seconds(timeout_s)
        while time.monotonic() < deadline:
            assert self.is_alive, f"the trainer ended with {self._process.returncode}:\n{self.log}"
            status = self.status()
            if status is not None and condition(status):
                return status
            time.sleep(0.01)
        raise AssertionError(f"waited {timeout_s} s in vain, last status {self.status()}:\n{self.log}")

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._end(10)

    def terminate(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 60.0) -> int:
        return self._end(timeout_s)

    def _end(self, timeout_s: float) -> int:
        code = self._process.wait(seconds(timeout_s))
        self._reader.join(seconds(timeout_s))
        if self._channel is not None:
            self._channel.close()
        if self._process.stderr is not None:
            self._process.stderr.close()
        return code

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_alive:
            self.kill()
        self._reader.join(seconds(5))
        if self._process.stderr is not None:
            self._process.stderr.close()


def produce(bootstrap: str, topic: str, logs: Sequence[Iterable[SampleRecord]], *, traceparent: str = "") -> list[int]:
    """Write one log per partition, in order; return the offsets behind them."""
    producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), acks="all", enable_idempotence=True, linger_ms=5)
    headers = [("traceparent", traceparent.encode())] if traceparent else []
    ends = []
    for partition, log in enumerate(logs):
        sent = [producer.send(topic, record.SerializeToString(), headers=headers, partition=partition) for record in log]
        producer.flush(seconds(60))
        ends.append(max(future.get(seconds(30)).offset for future in sent) + 1)
    producer.close()
    return ends


def read_base(pointer: BasePointer) -> Mapping[str, NDArray[Any]]:
    return read_artifact(
        pointer.uri, expect_schema_hash=SPEC.schema_hash, expect_lineage=pointer.lineage_id, expect_manifest_crc32c=pointer.manifest_crc32c
    )[1]


def base_pointers(bootstrap: str, topic: str) -> list[BasePointer]:
    consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="test")
    try:
        return [BasePointer.FromString(record.value) for record in drain_to_end(consumer)]
    finally:
        consumer.close()


def follow(bootstrap: str, topics: Topics, first: BasePointer) -> Follower:
    """A replica that began with `first` and has read all deltas since."""
    named = {pointer.base_id: pointer for pointer in base_pointers(bootstrap, topics.bases)}
    follower = Follower(read_base)
    follower.load(first)
    log = KafkaDeltaLog(bootstrap, topics.deltas, 0, producer=None)
    for record in log.read(first.delta_offsets[0], log.range()[1]):
        if record.header.epoch > follower.epoch and record.header.base_id != follower.base_id:
            follower.load(named[record.header.base_id])
        follower.see_delta(record)
    return follower
