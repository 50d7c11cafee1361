"""Checkpoints and bases of the trainer as artifacts: what they are called, what they hold, how many are kept.

A checkpoint is the whole state at one micro-batch boundary (weights, optimizer state, admission counters, what is still to be published,
de-duplication window, and the offsets that all of this contains); a base is the part that replicas need. Offsets are never stored apart
from the weights. Knows nothing of Kafka.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts import Arrays, Artifact, Manifest, delete_artifact, list_artifacts, read_artifact, write_artifact
from services.common.errors import ConfigurationError, CorruptArtifact, NotFound
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut

_log = logging.getLogger(__name__)

_DEDUP_ARRAY = "dedup/sample_ids"
_REPLICA_PARTS = ("ids", "rows", "default_row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the status shows and a restart must not reset."""

    samples_trained: int = 0
    duplicates_skipped: int = 0
    unusable_skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state at a cut; `arrays` are the learner's."""

    cut: Cut
    seq: int
    counters: Counters
    arrays: Mapping[str, NDArray[Any]]
    dedup_ids: NDArray[np.uint64]


class CheckpointStore:
    """The folder `<artifacts>/checkpoints`."""

    def __init__(self, artifacts_url: str, *, model: str, schema_hash: str, keep: int) -> None:
        """Nothing is touched before the first call.

        Args:
            artifacts_url: fsspec URL.
            model: of the feature spec.
            schema_hash: of the feature spec: checkpoints of another one are refused.
            keep: how many to keep.
        """
        self.url = posixpath.join(artifacts_url, "checkpoints")
        self._model = model
        self._schema_hash = schema_hash
        self._keep = keep

    def newest(self) -> Checkpoint | None:
        """Return the newest sound checkpoint; None when there is none. A damaged one is left out with a warning: older ones are as good.

        Raises:
            ConfigurationError: it was made under another feature spec, or all are damaged.
        """
        urls = list_artifacts(self.url)
        damage = ""
        for url in reversed(urls):
            try:
                manifest, arrays = read_artifact(url, expect_schema_hash=None)
                if manifest.schema_hash != self._schema_hash:
                    raise ConfigurationError(
                        f"checkpoint {url} was made under feature spec {manifest.schema_hash}, this trainer has {self._schema_hash}: "
                        "restore that feature spec, or set TUNEMESH_ARTIFACTS_URL to a new folder and train a base under the new one"
                    )
                return _parse(posixpath.basename(url), manifest, arrays)
            except CorruptArtifact as error:
                damage = str(error)
                _log.warning("checkpoint refused, trying an older one: %s", error)
        if urls:
            raise ConfigurationError(
                f"none of the {len(urls)} checkpoints in {self.url} is sound ({damage}): restore one, or move them away"
            )
        return None

    def write(self, checkpoint: Checkpoint, *, now_ms: int) -> str:
        """Write it durably, delete what is older than the newest `keep`, and return its URL.

        Raises:
            CorruptArtifact: a weight is NaN or infinite; nothing was written.
            Unavailable: the store cannot be written.
        """
        _refuse_poison(checkpoint.arrays)
        cut = checkpoint.cut
        manifest = Manifest(
            kind="checkpoint",
            model=self._model,
            schema_hash=self._schema_hash,
            lineage_id=cut.lineage_id,
            epoch=cut.epoch,
            seq=checkpoint.seq,
            source_offsets=tuple(cut.position.offsets),
            watermark_ms=cut.position.watermark_ms,
            created_at_ms=now_ms,
            metadata={
                "base_id": cut.base_id,
                "delta_offset": cut.delta_offset,
                "partitions": [[part.next_offset, part.last_tick, part.watermark_ms] for part in cut.position.partitions],
                "samples_trained": checkpoint.counters.samples_trained,
                "duplicates_skipped": checkpoint.counters.duplicates_skipped,
                "unusable_skipped": checkpoint.counters.unusable_skipped,
            },
        )
        url = posixpath.join(self.url, cut.name)
        write_artifact(url, manifest, {**checkpoint.arrays, _DEDUP_ARRAY: checkpoint.dedup_ids})
        _prune(self.url, self._keep)
        return url


class BaseStore:
    """The folder `<artifacts>/bases`."""

    def __init__(self, artifacts_url: str, *, model: str, schema_hash: str, keep: int) -> None:
        """As CheckpointStore."""
        self.url = posixpath.join(artifacts_url, "bases")
        self._model = model
        self._schema_hash = schema_hash
        self._keep = keep

    def write(self, checkpoint: Checkpoint, *, epoch: int, seq: int, now_ms: int) -> Artifact:
        """Write what replicas need of `checkpoint`, named by its cut's base_id; they continue with the deltas of `epoch` behind `seq`.

        Raises:
            CorruptArtifact: a weight is NaN or infinite; nothing was written.
            Unavailable: the store cannot be written.
        """
        _refuse_poison(checkpoint.arrays)
        cut = checkpoint.cut
        manifest = Manifest(
            kind="base",
            model=self._model,
            schema_hash=self._schema_hash,
            lineage_id=cut.lineage_id,
            epoch=epoch,
            seq=seq,
            source_offsets=tuple(cut.position.offsets),
            watermark_ms=cut.position.watermark_ms,
            created_at_ms=now_ms,
        )
        arrays = {name: array for name, array in checkpoint.arrays.items() if _is_replicas(name)}
        return write_artifact(posixpath.join(self.url, cut.base_id), manifest, arrays)

    def prune(self) -> None:
        """Delete what is older than the newest `keep`. Call it once the newest is announced: until then replicas load an older one."""
        _prune(self.url, self._keep)


def read_initial_base(url: str, *, schema_hash: str, variable: str) -> Arrays:
    """Return the learner's arrays of a base that batch training wrote.

    Raises:
        ConfigurationError: nothing is there, it is damaged, or it was made under another feature spec. Names the variable.
    """
    try:
        manifest, arrays = read_artifact(url, expect_schema_hash=schema_hash, only=lambda name: not name.startswith("features/"))
    except (NotFound, CorruptArtifact) as error:
        raise ConfigurationError(f"{variable}={url}: {error}") from error
    _log.info("beginning with base %s of epoch %d", url, manifest.epoch)
    return arrays


def checkpoint_name(epoch: int, number: int) -> str:
    """Return a name that sorts by epoch, then by number within it."""
    return f"checkpoint-{epoch:06d}-{number:06d}"


def base_name(epoch: int, number: int) -> str:
    """Return a name that sorts like `checkpoint_name`'s."""
    return f"base-{epoch:06d}-{number:06d}"


def _parse(name: str, manifest: Manifest, arrays: Arrays) -> Checkpoint:
    try:
        metadata = manifest.metadata
        position = Position(tuple(PartitionPosition(*(int(number) for number in part)) for part in metadata["partitions"]))
        cut = Cut(
            name=name,
            lineage_id=manifest.lineage_id,
            epoch=manifest.epoch,
            base_id=str(metadata["base_id"]),
            position=position,
            delta_offset=int(metadata["delta_offset"]),
        )
        counters = Counters(
            samples_trained=int(metadata["samples_trained"]),
            duplicates_skipped=int(metadata["duplicates_skipped"]),
            unusable_skipped=int(metadata["unusable_skipped"]),
        )
        dedup_ids = arrays.pop(_DEDUP_ARRAY)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifact(f"checkpoint {name}: lacks or garbles {error}") from error
    return Checkpoint(cut=cut, seq=manifest.seq, counters=counters, arrays=arrays, dedup_ids=dedup_ids)


def _is_replicas(name: str) -> bool:
    kind, _, rest = name.partition("/")
    return kind == "dense" or (kind == "table" and rest.partition("/")[2] in _REPLICA_PARTS)


def _refuse_poison(arrays: Mapping[str, NDArray[Any]]) -> None:
    """A checkpoint that holds NaN would bring it back for ever."""
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise CorruptArtifact(f"array {name} holds NaN or infinity: not written, the last sound checkpoint stays the newest")


def _prune(url: str, keep: int) -> None:
    for old in list_artifacts(url)[:-keep]:
        delete_artifact(old)
