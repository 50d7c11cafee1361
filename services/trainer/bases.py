"""Bases of the trainer as artifacts: the part of a checkpoint that replicas need, and what they continue from by deltas."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import RowDtype

from services.common.platform.artifacts import (
    Arrays,
    Artifact,
    Manifest,
    delete_artifact,
    list_artifacts,
    read_artifact,
    read_manifest,
    write_artifact,
)
from services.common.platform.errors import ConfigurationError, CorruptArtifact, NotFound, Unavailable
from services.common.ranker.delta import rounded
from services.common.ranker.spec_description import SCHEMA_ARRAY
from services.trainer.checkpoints import Checkpoint, refuse_poison

_log = logging.getLogger(__name__)

_REPLICA_PARTS = ("ids", "rows", "default_row")


class BaseStore:
    """The folder `<artifacts>/bases`."""

    def __init__(self, artifacts_url: str, *, model: str, schema_hash: str, row_dtype: RowDtype, keep: int) -> None:
        """Nothing is touched before the first call.

        Args:
            artifacts_url: fsspec URL.
            model: of the feature spec.
            schema_hash: of the feature spec; bases carry it.
            row_dtype: of the deltas: a base holds rows just as a replica has them that got them by deltas.
            keep: how many `prune` leaves.
        """
        self.url = posixpath.join(artifacts_url, "bases")
        self._model = model
        self._schema_hash = schema_hash
        self._row_dtype = row_dtype
        self._keep = keep

    def write(self, checkpoint: Checkpoint, *, epoch: int, seq: int, now_ms: int) -> Artifact:
        """Write what replicas need of `checkpoint`, named by its cut's base_id; they continue with the deltas of `epoch` behind `seq`.

        Raises:
            CorruptArtifact: a weight is NaN or infinite; nothing was written.
            Unavailable: the store cannot be written.
        """
        refuse_poison(checkpoint.arrays)
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
        arrays = as_replicas_have_them(checkpoint.arrays, self._row_dtype)
        return write_artifact(posixpath.join(self.url, cut.base_id), manifest, arrays)

    def prune(self, announced: str, lineage_id: str) -> None:
        """Delete what is older than the newest `keep`. Call it once the newest is announced: until then replicas load an older one.

        Where epochs began anew, since broker and checkpoints are gone, older bases have higher names and another lineage: they go first.
        Of a later epoch of this lineage nothing is touched. A store that does not answer keeps all until the next call: the base that was
        announced counts all the same.

        Args:
            announced: its name.
            lineage_id: of the broker's history that it belongs to.
        """
        try:
            urls = list_artifacts(self.url)
            later = [url for url in urls if posixpath.basename(url) > announced]
            if not any(_lineage_of(url) == lineage_id for url in later):
                for old in [*later, *(url for url in urls if url not in later)][: -self._keep]:
                    delete_artifact(old)
        except Unavailable as error:
            _log.warning("older bases are deleted after the next one: %s", error)


def read_initial_base(url: str, *, schema_hash: str, variable: str) -> Arrays:
    """Return the learner's arrays of a base that batch training wrote; the learner says what it keeps of one of another feature spec.

    Raises:
        ConfigurationError: nothing is there, it is damaged, or it was made under another feature spec and does not say which. Names the
            variable.
    """
    try:
        manifest, arrays = read_artifact(url, expect_schema_hash=None, only=lambda name: not name.startswith("features/"))
        if manifest.schema_hash != schema_hash and SCHEMA_ARRAY not in arrays:
            raise CorruptArtifact(f"artifact {url}: schema {manifest.schema_hash!r} is foreign, this program has {schema_hash!r}")
    except (NotFound, CorruptArtifact) as error:
        raise ConfigurationError(f"{variable}={url}: {error}") from error
    _log.info("beginning with base %s of epoch %d", url, manifest.epoch)
    return arrays


def _lineage_of(url: str) -> str | None:
    """Return the lineage that a base names; None when it cannot be read, or is gone by now."""
    try:
        return read_manifest(url).manifest.lineage_id
    except (CorruptArtifact, NotFound):
        return None


def base_name(epoch: int, number: int) -> str:
    """Return a name that sorts like `checkpoint_name`'s."""
    return f"base-{epoch:06d}-{number:06d}"


def as_replicas_have_them(arrays: Mapping[str, NDArray[Any]], row_dtype: RowDtype) -> Arrays:
    """Return those of a learner's arrays that replicas need, the rows as exact as deltas of this dtype bring them."""
    return {
        name: rounded(array, row_dtype) if name.startswith("table/") and name.endswith("/rows") else array
        for name, array in arrays.items()
        if _is_replicas(name)
    }


def _is_replicas(name: str) -> bool:
    kind, _, rest = name.partition("/")
    return kind == "dense" or (kind == "table" and rest.partition("/")[2] in _REPLICA_PARTS)
