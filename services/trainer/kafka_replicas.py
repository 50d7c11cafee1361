"""What replicas report, from replicas.v1: followed in a thread of its own, since the worker must not wait for it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from tunemesh.events.v1.delta_pb2 import ReplicaStatus

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.platform.topic_follower import Record, TopicFollower
from services.trainer.kafka_calls import CLIENT_ID

# Replicas repeat themselves every second: what is not taken in time is said again.
_MAX_UNTAKEN = 10_000

_log = logging.getLogger(__name__)


class KafkaReplicaReports:
    """Meets `base_publisher.ReplicaReports`."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        """Nothing is connected before `start`."""
        self._topic = topic
        self._untaken: deque[ReplicaStatus] = deque(maxlen=_MAX_UNTAKEN)
        self._follower = TopicFollower(bootstrap_servers, topic, self, client_id=CLIENT_ID)

    def start(self) -> None:
        """Begin to follow."""
        self._follower.start()

    def stop(self) -> None:
        """End the thread."""
        self._follower.stop()

    def take(self) -> Sequence[ReplicaStatus]:
        """Return what was reported since the last call; never blocks."""
        return [self._untaken.popleft() for _ in range(len(self._untaken))]

    def begin(self, records: Sequence[Record]) -> None:
        """Pass over what was said before: whoever still asks says so again."""

    def extend(self, records: Sequence[Record]) -> None:
        """Take what was appended. Runs in the follower's thread."""
        for record in records:
            if record.value is None:
                continue
            try:
                self._untaken.append(parse_value(record.value, record.headers, ReplicaStatus))
            except MalformedRecord as error:
                _log.error("%s: the record at offset %d is left out: %s", self._topic, record.offset, error)
