"""Checkpoints of the trainer as artifacts: what they are called, what they hold, how many are kept.

A checkpoint is the whole state at one micro-batch boundary: weights, optimizer state, admission counters, what is still to be published,
de-duplication window, and the offsets that all of this contains. Offsets are never stored apart from the weights.
Checkpoints are thinned out with age (`Retention`), so that there is something to go back to. Knows nothing of Kafka.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.common.platform.artifacts import (
    Arrays,
    Manifest,
    delete_artifact,
    list_artifacts,
    read_artifact,
    read_manifest,
    write_artifact,
)
from services.common.platform.errors import ConfigurationError, CorruptArtifact, NotFound, Unavailable
from services.common.ranker.spec_description import SCHEMA_ARRAY
from services.trainer.dedup import take_arrays
from services.trainer.merge import PartitionPosition, Position
from services.trainer.plan import Cut, PassedOver, Restored

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the status shows and a restart must not reset."""

    samples_trained: int = 0
    duplicates_skipped: int = 0
    unusable_skipped: int = 0
    refused_skipped: int = 0


class Version(NamedTuple):
    """A version of the weights as answers name it: "epoch.seq"."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state at a cut; `arrays` are the learner's, `dedup` the de-duplication window's.

    `seq` is that of the last delta whose content is in the weights, `within_seq` that of the delta that has, or would have, all of them.
    """

    cut: Cut
    seq: int
    within_seq: int
    counters: Counters
    arrays: Mapping[str, NDArray[Any]]
    dedup: Mapping[str, NDArray[Any]]

    @property
    def version(self) -> Version:
        """The last delta whose content is in the weights."""
        return Version(self.cut.restored.epoch if self.cut.restored is not None else self.cut.epoch, self.seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints are kept: the newest ones to continue from, and a sparse history to go back to.

    Attributes:
        keep: the newest so many.
        history_interval_ms: beyond those, the first one of each interval of this length ...
        history_keep: ... for the newest so many intervals that have one.
    """

    keep: int
    history_interval_ms: int
    history_keep: int

    def dispensable(self, created_at_ms: Sequence[int | None]) -> list[int]:
        """Return the positions of those to delete.

        Args:
            created_at_ms: of all checkpoints, oldest first; None: not known (damaged), and not worth keeping for history.
        """
        first_of: dict[int, int] = {}
        for at, created in enumerate(created_at_ms):
            if created is not None:
                first_of.setdefault(created // self.history_interval_ms, at)
        kept = {at for _, at in sorted(first_of.items())[-self.history_keep :]} if self.history_keep else set()
        kept |= set(range(max(len(created_at_ms) - self.keep, 0), len(created_at_ms)))
        return [at for at in range(len(created_at_ms)) if at not in kept]


class Dated(NamedTuple):
    """A checkpoint, where it is and when it was written."""

    checkpoint: Checkpoint
    url: str
    created_at_ms: int


class CheckpointStore:
    """The folder `<artifacts>/checkpoints`."""

    def __init__(self, artifacts_url: str, *, model: str, schema_hash: str, retention: Retention) -> None:
        """Nothing is touched before the first call.

        Args:
            artifacts_url: fsspec URL.
            model: of the feature spec.
            schema_hash: of the feature spec: checkpoints of another one are refused.
            retention: which to keep.
        """
        self.url = posixpath.join(artifacts_url, "checkpoints")
        self._model = model
        self._schema_hash = schema_hash
        self._retention = retention
        # Artifacts never change: a manifest is read once.
        self._manifests: dict[str, Manifest | None] = {}

    def newest(self) -> Checkpoint | None:
        """Return the newest sound checkpoint; None when there is none. A damaged one is left out with a warning: older ones are as good.

        One of another feature spec that it describes has no base (replicas need one of their spec); the learner says what of it it keeps.

        Raises:
            ConfigurationError: it was made under another feature spec and does not say which, or all are damaged.
            Unavailable: the store cannot be read.
        """
        urls = list_artifacts(self.url)
        damage = ""
        for url in reversed(urls):
            try:
                manifest, arrays = read_artifact(url, expect_schema_hash=None)
                is_foreign = manifest.schema_hash != self._schema_hash
                if is_foreign and SCHEMA_ARRAY not in arrays:
                    raise ConfigurationError(
                        f"checkpoint {url} was made under feature spec {manifest.schema_hash}, this trainer has {self._schema_hash}: "
                        "restore that feature spec, or set TUNEMESH_ARTIFACTS_URL to a new folder and train a base under the new one"
                    )
                checkpoint = _parse(posixpath.basename(url), manifest, arrays)
                return replace(checkpoint, cut=replace(checkpoint.cut, base_id="")) if is_foreign else checkpoint
            except CorruptArtifact as error:
                damage = str(error)
                _log.warning("checkpoint refused, trying an older one: %s", error)
        if urls:
            raise ConfigurationError(
                f"none of the {len(urls)} checkpoints in {self.url} is sound ({damage}): restore one, or move them away"
            )
        return None

    def at_or_before(self, time_ms: int, *, lineage_id: str) -> Dated:
        """Return the newest sound checkpoint written at or before a time (Unix milliseconds), in this history of the broker.

        Raises:
            NotFound: there is none; says what is kept.
            Unavailable: the store cannot be read.
        """
        kept = self._kept(lineage_id)
        found = self._first_sound([url for url, manifest in reversed(kept) if manifest.created_at_ms <= time_ms], lineage_id)
        if found is None:
            raise nothing_so_old(time_ms, [manifest.created_at_ms for _, manifest in kept])
        return found

    def at_or_before_version(self, version: Version, *, lineage_id: str) -> Dated:
        """Return the sound checkpoint of the newest weights up to a version, in this history of the broker.

        Raises:
            NotFound: there is none; says what is kept.
            Unavailable: the store cannot be read.
        """
        kept = [(_version_of(manifest), url) for url, manifest in self._kept(lineage_id)]
        found = self._first_sound([url for held, url in sorted(kept, reverse=True) if held <= version], lineage_id)
        if found is None:
            raise no_such_version(version, [held for held, _ in kept])
        return found

    def _kept(self, lineage_id: str) -> list[tuple[str, Manifest]]:
        """Return those of this history and feature spec, by name."""
        self._manifests = self._look_at(list_artifacts(self.url))
        return [
            (url, manifest)
            for url, manifest in self._manifests.items()
            if manifest is not None and (manifest.lineage_id, manifest.schema_hash) == (lineage_id, self._schema_hash)
        ]

    def _first_sound(self, urls: Sequence[str], lineage_id: str) -> Dated | None:
        for url in urls:
            try:
                manifest, arrays = read_artifact(url, expect_schema_hash=self._schema_hash, expect_lineage=lineage_id)
                return Dated(_parse(posixpath.basename(url), manifest, arrays), url, manifest.created_at_ms)
            except (CorruptArtifact, NotFound) as error:
                _log.warning("checkpoint refused, trying an older one: %s", error)
        return None

    def write(self, checkpoint: Checkpoint, *, now_ms: int) -> str:
        """Write it durably, delete those that the retention gives up, and return its URL.

        Raises:
            CorruptArtifact: a weight is NaN or infinite; nothing was written.
            Unavailable: the store cannot be written.
        """
        refuse_poison(checkpoint.arrays)
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
                "row_dtype": cut.row_dtype,
                "within_seq": checkpoint.within_seq,
                "delta_offset": cut.delta_offset,
                "partitions": [
                    [part.next_offset, part.last_tick, part.watermark_ms, part.exposures_done, part.exposures_log]
                    for part in cut.position.partitions
                ],
                "samples_trained": checkpoint.counters.samples_trained,
                "duplicates_skipped": checkpoint.counters.duplicates_skipped,
                "unusable_skipped": checkpoint.counters.unusable_skipped,
                "refused_skipped": checkpoint.counters.refused_skipped,
                "restored": asdict(cut.restored) if cut.restored is not None else None,
                "passed_over": [[part.partition, part.first, part.end] for part in cut.passed_over],
            },
        )
        url = posixpath.join(self.url, cut.name)
        write_artifact(url, manifest, {**checkpoint.arrays, **checkpoint.dedup})
        try:
            self._prune()
        except Unavailable as error:
            _log.warning("checkpoint %s is written; which older ones can go is looked at after the next one: %s", url, error)
        return url

    def _prune(self) -> None:
        """Delete what the retention gives up. One that is listed and not there is nobody's to judge: the next look says."""
        found = self._look_at(list_artifacts(self.url))
        urls = list(found)
        for at in self._retention.dispensable([manifest.created_at_ms if manifest is not None else None for manifest in found.values()]):
            delete_artifact(urls[at])
        self._manifests = found

    def _look_at(self, urls: Sequence[str]) -> dict[str, Manifest | None]:
        """Return the manifests by URL, in the order of `urls`; None: damaged. Those that are not there are left out.

        Raises:
            Unavailable: the store cannot be read, which says nothing about a checkpoint.
        """
        found: dict[str, Manifest | None] = {}
        for url in urls:
            try:
                found[url] = self._manifests[url] if url in self._manifests else read_manifest(url).manifest
            except NotFound as error:
                _log.warning("checkpoint left out: %s", error)
            except CorruptArtifact as error:
                _log.warning("checkpoint left out: %s", error)
                found[url] = None
        return found


def nothing_so_old(time_ms: int, kept_ms: Sequence[int]) -> NotFound:
    """Return the error that says which checkpoints there are instead."""
    if not kept_ms:
        return NotFound("no checkpoint of this broker's history is kept")
    return NotFound(
        f"no checkpoint was written at or before {_clock(time_ms)} ({time_ms}); the {len(kept_ms)} that are kept were written from "
        f"{_clock(min(kept_ms))} ({min(kept_ms)}) to {_clock(max(kept_ms))} ({max(kept_ms)})"
    )


def no_such_version(version: Version, kept: Sequence[Version]) -> NotFound:
    """Return the error that says which versions there are instead."""
    if not kept:
        return NotFound("no checkpoint of this broker's history is kept")
    held = sorted(set(kept))
    return NotFound(f"no checkpoint holds version {version} or one before it; the {len(kept)} that are kept hold {held[0]} to {held[-1]}")


def _version_of(manifest: Manifest) -> Version:
    """Return the oldest version that has all that a checkpoint holds.

    The copy that a restore writes holds old weights, and stands for the first version of the epoch that begins with it.
    """
    if manifest.metadata.get("restored") is not None:
        return Version(manifest.epoch + 1, -1)
    within_seq = manifest.metadata.get("within_seq")
    return Version(manifest.epoch, within_seq if isinstance(within_seq, int) else manifest.seq + 1)


def _clock(time_ms: int) -> str:
    """Return the time in words; a request may carry any number."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1e3, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


def checkpoint_name(epoch: int, number: int) -> str:
    """Return a name that sorts by epoch, then by number within it."""
    return f"checkpoint-{epoch:06d}-{number:06d}"


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
            restored=_parse_restored(metadata.get("restored")),
            row_dtype=int(metadata.get("row_dtype", 0)),
            passed_over=tuple(PassedOver(*(int(number) for number in part)) for part in metadata.get("passed_over", ())),
        )
        counters = Counters(
            samples_trained=int(metadata["samples_trained"]),
            duplicates_skipped=int(metadata["duplicates_skipped"]),
            unusable_skipped=int(metadata["unusable_skipped"]),
            refused_skipped=int(metadata.get("refused_skipped", 0)),
        )
        within_seq = int(metadata.get("within_seq", manifest.seq + 1))
        dedup = take_arrays(arrays)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CorruptArtifact(f"checkpoint {name}: its manifest lacks a field, or one cannot be understood: {error}") from error
    if any(part.next_offset < 0 for part in position.partitions):
        raise CorruptArtifact(f"checkpoint {name}: it continues at offsets {position.offsets}")
    return Checkpoint(cut=cut, seq=manifest.seq, within_seq=within_seq, counters=counters, arrays=arrays, dedup=dedup)


def _parse_restored(fields: Mapping[str, Any] | None) -> Restored | None:
    if fields is None:
        return None
    skipped = tuple(int(number) for number in fields["skipped"])
    return Restored(checkpoint=str(fields["checkpoint"]), skipped=skipped, actor=str(fields["actor"]), epoch=int(fields.get("epoch", 0)))


def refuse_poison(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what would bring NaN back at every start from it.

    Raises:
        CorruptArtifact: an array holds NaN or infinity.
    """
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise CorruptArtifact(f"array {name} holds NaN or infinity: not written, the last sound checkpoint stays the newest")
