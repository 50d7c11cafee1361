"""A base in the artifact store, as replicas take it: tables and dense weights."""

from __future__ import annotations

import numpy as np

from services.common.platform.artifacts import Arrays, read_artifact
from services.common.platform.errors import CorruptArtifact
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.writer import TABLE_NAME, TableImage
from services.recommender.updater.core import BasePointer
from services.recommender.updater.worker import Base

_REPLICA_ARRAYS = ("ids", "rows", "default_row")


def load_base(pointer: BasePointer, *, shard: int = 0) -> Base:
    """Read the base that `pointer` means.

    Raises:
        CorruptArtifact: it is damaged or foreign, or not what the pointer says.
        NotFound: it is not there, or the pointer's URI is of no store that this program knows.
        Unavailable: the store does not answer.
    """
    manifest, arrays = read_artifact(
        pointer.uri,
        expect_schema_hash=pointer.schema_hash,
        expect_lineage=pointer.lineage_id,
        expect_manifest_crc32c=pointer.manifest_crc32c,
        only=_is_for_replicas,
    )
    if (manifest.kind, manifest.model, manifest.epoch, manifest.seq) != ("base", pointer.model, pointer.epoch, pointer.seq):
        raise CorruptArtifact(
            f"artifact {pointer.uri} is the {manifest.kind} {manifest.epoch}.{manifest.seq} of {manifest.model!r}, "
            f"its pointer means the base {pointer.epoch}.{pointer.seq} of {pointer.model!r}"
        )
    applied = Applied(
        epoch=pointer.epoch,
        seq=pointer.seq,
        watermark_ms=manifest.watermark_ms,
        base_id=pointer.base_id,
        delta_offset=pointer.delta_offsets[shard],
    )
    dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}
    for name, array in dense.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise CorruptArtifact(f"artifact {pointer.uri}: the dense weights {name} are not finite float32: {array.dtype} {array.shape}")
    return Base(_tables(pointer.uri, arrays), dense, applied)


def _is_for_replicas(name: str) -> bool:
    kind, _, rest = name.partition("/")
    return kind == "dense" or (kind == "table" and rest.partition("/")[2] in _REPLICA_ARRAYS)


def _tables(uri: str, arrays: Arrays) -> dict[str, TableImage]:
    images = {}
    for name in sorted({key.split("/")[1] for key in arrays if key.startswith("table/")}):
        if not TABLE_NAME.fullmatch(name):
            raise CorruptArtifact(f"artifact {uri}: {name!r} is no name of a table")
        try:
            ids, rows, default_row = (arrays[f"table/{name}/{part}"] for part in _REPLICA_ARRAYS)
        except KeyError as error:
            raise CorruptArtifact(f"artifact {uri} has no array {error.args[0]}") from error
        if ids.dtype != np.int64 or rows.shape != (ids.size, default_row.size) or ids.ndim != 1 or default_row.ndim != 1:
            raise CorruptArtifact(f"artifact {uri}: table {name!r} has {ids.size} ids of {ids.dtype}, rows {rows.shape}")
        if not default_row.size or any(part.dtype != np.float32 or not np.isfinite(part).all() for part in (rows, default_row)):
            raise CorruptArtifact(f"artifact {uri}: the rows of table {name!r} are not finite float32: {rows.dtype} {rows.shape}")
        if np.unique(ids).size != ids.size:
            raise CorruptArtifact(f"artifact {uri}: table {name!r} has an id twice")
        images[name] = TableImage(ids, rows, default_row)
    if not images:
        raise CorruptArtifact(f"artifact {uri} holds no table")
    return images
