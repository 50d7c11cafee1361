"""What is measured while the load runs: memory, file descriptors and threads of each service's processes, and how far consumers are behind.

Linux only: it reads /proc. Knows which groups and positions there are, nothing about what the services do with the records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psutil
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from tunemesh.events.v1 import delta_pb2
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb2
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

from services.common.events import topics
from services.common.platform.grpc_client import open_blocking_channel
from services.common.platform.kafka import read_compacted
from services.mesh.runner.mesh import Mesh

# Consumer groups by service: a group commits what it has done with. Others keep their offsets themselves and are asked.
GROUPS: Mapping[str, tuple[topics.Topic, ...]] = {
    "joiner": (topics.EXPOSURES, topics.FEEDBACK),
    "features": (topics.FEEDBACK,),
    "curator": (topics.GENERATIONS, topics.FEEDBACK),
    "inference": (topics.INFERENCE_REQUESTS,),
}
_MIB = float(2**20)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one service's processes hold: the service itself and all its children."""

    rss_mib: float
    fds: int
    threads: int


def usage_of(pid: int) -> Usage | None:
    """Return the usage of a process and its children, None when it has ended. A child that ends meanwhile is left out."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    rss, fds, threads = 0, 0, 0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
            found = process.memory_info().rss, process.num_fds(), process.num_threads()
            rss, fds, threads = rss + found[0], fds + found[1], threads + found[2]
    return Usage(rss / _MIB, fds, threads)


class LagReader:
    """Asks the broker, the trainer and the replicas' status how many records each consumer is behind."""

    def __init__(self, mesh: Mesh) -> None:
        """Connect to the mesh's broker and trainer. Use it as a context manager."""
        self._kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]
        self._services = set(mesh.services())
        servers = self._kafka.split(",")
        self._admin = KafkaAdminClient(bootstrap_servers=servers, client_id="soak")
        self._consumer = KafkaConsumer(bootstrap_servers=servers, client_id="soak", enable_auto_commit=False, metrics_enabled=False)
        self._channel = open_blocking_channel(mesh.address("trainer"))
        self._trainer = trainer_grpc.TrainerServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated

    def __enter__(self) -> LagReader:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connections."""
        self._admin.close()
        self._consumer.close()
        self._channel.close()

    def lags(self) -> dict[str, int]:
        """Return by service how many records it is behind; a service that has not committed anything yet is left out.

        The embedded broker tells ends that may be one batch short, so a lag may be as much too small.
        """
        found = {}
        for service, consumed in GROUPS.items():
            if service in self._services and (lag := self._group_lag(service, consumed)) is not None:
                found[service] = lag
        trained = self._trainer.GetStatus(trainer_pb2.GetStatusRequest(), timeout=10.0).source_offsets
        found["trainer"] = self._behind(topics.SAMPLES.name, trained)
        statuses = read_compacted(self._kafka, topics.REPLICAS.name, client_id="soak").values()
        replicas = [delta_pb2.ReplicaStatus.FromString(record.value).delta_offsets for record in statuses]
        if replicas:
            found["updater"] = max(self._behind(topics.RANKER_DELTAS.name, offsets) for offsets in replicas)
        return found

    def _group_lag(self, service: str, consumed: Iterable[topics.Topic]) -> int | None:
        partitions = [at for topic in consumed for at in self._partitions(topic.name)]
        group = f"tunemesh-{service}"
        committed: dict[TopicPartition, Any] = self._admin.list_group_offsets({group: partitions})[group]
        known: dict[TopicPartition, int] = {at: found.offset for at, found in committed.items() if found.offset >= 0}
        if not known:
            return None
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(list(known))
        return sum(max(ends[at] - offset, 0) for at, offset in known.items())

    def _behind(self, topic: str, positions: Iterable[int]) -> int:
        ends = self._consumer.end_offsets(self._partitions(topic))
        by_partition = [ends[at] for at in sorted(ends)]
        return sum(max(end - position, 0) for end, position in zip(by_partition, positions, strict=False))

    def _partitions(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())]
