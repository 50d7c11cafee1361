"""The one table of Kafka topics. README repeats it; a contract test keeps the two equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Partitioning = Literal["user", "shard", "single"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic: its name, what its key is, how it is partitioned and cleaned up."""

    name: str
    key: str
    value: str
    partitioning: Partitioning
    cleanup: Literal["delete", "compact"]

    @property
    def dlq(self) -> str:
        """Name of the topic that holds this topic's unusable records."""
        return f"{self.name}.dlq.v1"

    def num_partitions(self, user_partitions: int, shards: int) -> int:
        """Return the partition count: joined topics share `user_partitions`, deltas have one per shard."""
        return {"user": user_partitions, "shard": shards, "single": 1}[self.partitioning]


EXPOSURES = Topic(name="exposures.v1", key="user_id", value="tunemesh.events.v1.Exposure", partitioning="user", cleanup="delete")
FEEDBACK = Topic(name="feedback.v1", key="user_id", value="tunemesh.events.v1.Feedback", partitioning="user", cleanup="delete")
SAMPLES = Topic(name="samples.v1", key="user_id", value="tunemesh.samples.v1.SampleRecord", partitioning="user", cleanup="delete")
CATALOG = Topic(name="catalog.v1", key="item_id", value="tunemesh.catalog.v1.CatalogItem", partitioning="single", cleanup="compact")
PROFILES = Topic(name="profiles.v1", key="user_id", value="tunemesh.events.v1.Profile", partitioning="user", cleanup="compact")
RANKER_DELTAS = Topic(name="ranker.deltas.v1", key="shard", value="tunemesh.events.v1.Delta", partitioning="shard", cleanup="delete")
RANKER_BASES = Topic(name="ranker.bases.v1", key="model", value="tunemesh.events.v1.BasePointer", partitioning="single", cleanup="compact")
REPLICAS = Topic(name="replicas.v1", key="replica_id", value="tunemesh.events.v1.ReplicaStatus", partitioning="single", cleanup="compact")
CONTROL = Topic(name="control.v1", key="subject", value="tunemesh.events.v1.ControlRecord", partitioning="single", cleanup="compact")
GENERATIONS = Topic(name="generations.v1", key="user_id", value="tunemesh.events.v1.Generation", partitioning="user", cleanup="delete")
LLM_EXAMPLES = Topic(name="llm.examples.v1", key="task", value="tunemesh.events.v1.LlmExample", partitioning="single", cleanup="delete")
INFERENCE_REQUESTS = Topic(
    name="inference.requests.v1", key="user_id", value="tunemesh.events.v1.InferenceRequest", partitioning="user", cleanup="delete"
)
INFERENCE_RESPONSES = Topic(
    name="inference.responses.v1", key="user_id", value="tunemesh.events.v1.InferenceResponse", partitioning="user", cleanup="delete"
)
QUALITY = Topic(name="quality.v1", key="variant", value="tunemesh.events.v1.QualityWindow", partitioning="single", cleanup="delete")

ALL: tuple[Topic, ...] = (
    EXPOSURES,
    FEEDBACK,
    SAMPLES,
    CATALOG,
    PROFILES,
    RANKER_DELTAS,
    RANKER_BASES,
    REPLICAS,
    CONTROL,
    GENERATIONS,
    LLM_EXAMPLES,
    INFERENCE_REQUESTS,
    INFERENCE_RESPONSES,
    QUALITY,
)

# The mesh reads none of these: it writes them for others.
_UNREAD = (INFERENCE_RESPONSES, QUALITY)
READ: tuple[Topic, ...] = tuple(topic for topic in ALL if topic not in _UNREAD)
"""Topics that the mesh reads: an unusable record of one is in its dead letters, with topic, partition, offset and cause."""

BY_DLQ = {topic.dlq: topic for topic in ALL}
"""The topic whose unusable records a dead-letter topic holds, and those that were to be written to it and that Kafka refused."""
