"""`tunemesh lineage`: from which topics and columns features come, which versions of the ranker have them; and the reverse of a version.

Versions are those whose checkpoints the artifact store keeps: a checkpoint says under which feature spec it was made.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.common.platform.artifacts import list_artifacts, read_artifact
from services.common.platform.errors import CorruptArtifact, InvalidInput, NotFound
from services.common.ranker.lineage import Lineage, lineages_of_artifact, sources_of
from services.common.ranker.spec_description import SCHEMA_ARRAY, Description
from services.mesh.operate.times import iso

RANKER = "ranker"


@dataclass(frozen=True, slots=True)
class Version:
    """One kept checkpoint."""

    name: str
    """EPOCH.SEQ."""
    checkpoint: str
    written_at: str
    schema_hash: str
    features: tuple[Lineage, ...]


def kept_versions(artifacts_url: str) -> list[Version]:
    """Return the versions whose checkpoints are kept, oldest first; those of before specs were described are left out.

    Raises:
        CorruptArtifact: a checkpoint cannot be understood.
        Unavailable: the store cannot be read.
    """
    found = []
    for url in list_artifacts(posixpath.join(artifacts_url, "checkpoints")):
        try:
            manifest, arrays = read_artifact(url, expect_schema_hash=None, only=lambda name: name == SCHEMA_ARRAY)
        except NotFound:
            continue  # pruned since it was listed
        if SCHEMA_ARRAY in arrays:
            features = _features(url, Description.of(arrays[SCHEMA_ARRAY]))
            found.append(
                Version(
                    f"{manifest.epoch}.{manifest.seq}", posixpath.basename(url), iso(manifest.created_at_ms), manifest.schema_hash, features
                )
            )
    return found


def _features(url: str, description: Description) -> tuple[Lineage, ...]:
    try:
        return lineages_of_artifact(description)
    except CorruptArtifact as error:
        raise CorruptArtifact(f"artifact {url}: {error}") from error


def version_of(kept: Sequence[Version], name: str) -> Version:
    """Return the kept version that `ranker/EPOCH.SEQ` names; of `ranker` alone the newest.

    Raises:
        InvalidInput: it is not kept; names those that are.
    """
    wanted = name.removeprefix(RANKER).removeprefix("/")
    chosen = [one for one in kept if wanted in ("", one.name)]
    if not chosen:
        there = ", ".join(one.name for one in kept) or "none"
        raise InvalidInput(f"version {wanted or 'of the ranker'} is not kept; kept are {there}")
    return chosen[-1]


def document_of_features(features: Sequence[Lineage], kept: Sequence[Version]) -> list[dict[str, Any]]:
    """Return a row a feature: what it is made from, and which kept versions have it with the same meaning."""
    return [
        {
            "feature": one.name,
            "kind": one.kind,
            "makes": list(one.makes),
            "reads": list(one.reads),
            "sources": [{"reference": source.reference, "topic": source.topic, "file": source.file} for source in one.sources],
            "versions": [version.name for version in kept if one in version.features],
        }
        for one in features
    ]


def document_of_version(version: Version) -> dict[str, Any]:
    """Return what a version is made from."""
    return {
        "version": version.name,
        "checkpoint": version.checkpoint,
        "written_at": version.written_at,
        "schema_hash": version.schema_hash,
        "sources": [{"reference": source.reference, "topic": source.topic, "file": source.file} for source in sources_of(version.features)],
        "features": [one.name for one in version.features],
    }
