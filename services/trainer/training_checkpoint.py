"""Checkpoints of a batch training: a training that was killed and is started again by the same command goes on, to the same weights.

A checkpoint holds the learner, how far it is, and what the passes before said. The online states are not in it: they are made again from
the events, which takes a fraction of what learning takes. It stands beside the base's place, as an artifact of its own, and is deleted when
the base is written. Knows nothing of what the events are; a fingerprint says whether they, the options and the program are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.platform.artifacts import Manifest, delete_artifact, list_artifacts, read_artifact, read_manifest, write_artifact
from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.batch import EpochStats

Arrays = Mapping[str, npt.NDArray[Any]]

KIND = "training"
_BEST = "best/"


@dataclass(slots=True)
class Standing:
    """How far a training is.

    Attributes:
        epoch: the pass under way, from 0; the number of passes when all are done.
        stats: of that pass; None: it has not begun.
        held_out_losses: of the passes that are done, where they were measured.
    """

    epoch: int = 0
    stats: EpochStats | None = None
    held_out_losses: list[float] = field(default_factory=list)


class TrainingCheckpoints:
    """The newest checkpoint of one training."""

    def __init__(self, spec: FeatureSpec, out_url: str, fingerprint: str) -> None:
        """out_url: where the base will be. fingerprint: of all that decides the weights."""
        self._spec, self._fingerprint = spec, fingerprint
        self.url = f"{out_url.rstrip('/')}.training"
        self._written = 0

    def write(self, standing: Standing, learner: Arrays, best: Arrays | None) -> None:
        """Write a checkpoint, then delete the one before. best: of the best pass so far, where passes are compared.

        Raises:
            Unavailable: the store cannot be written.
        """
        before = list_artifacts(self.url)
        self._written = 1 + max((int(url.rpartition("/")[2]) for url in before), default=self._written)
        stats = standing.stats
        manifest = Manifest(
            kind=KIND,
            model=self._spec.model,
            schema_hash=self._spec.schema_hash,
            lineage_id="",
            epoch=standing.epoch,
            seq=-1 if stats is None else stats.num_events,
            created_at_ms=wall_ms(),
            metadata={"fingerprint": self._fingerprint},
        )
        arrays = dict(learner) | {f"{_BEST}{name}": array for name, array in (best or {}).items()}
        arrays["standing/held_out_losses"] = np.asarray(standing.held_out_losses, np.float64)
        arrays["standing/loss_by_task"] = np.zeros(0) if stats is None else stats.loss_by_task
        write_artifact(f"{self.url}/{self._written:09d}", manifest, arrays)
        for url in before:
            delete_artifact(url)

    def read(self) -> tuple[Standing, Arrays, Arrays | None] | None:
        """Return what `write` was given last; None where there is nothing to go on from.

        Raises:
            ConfigurationError: it is a checkpoint of another training, or is damaged; says what to do.
            Unavailable: the store cannot be read.
        """
        urls = list_artifacts(self.url)
        if not urls:
            return None
        advice = f"delete the folder {self.url} to train from the beginning"
        try:
            if read_manifest(urls[-1]).manifest.metadata.get("fingerprint") != self._fingerprint:
                raise ConfigurationError(
                    f"{self.url}: is the checkpoint of another training: events, feature spec, options or program differ; "
                    f"train with those, or {advice}"
                )
            manifest, arrays = read_artifact(urls[-1], expect_schema_hash=self._spec.schema_hash)
        except CorruptArtifact as error:
            raise ConfigurationError(f"{error}; {advice}") from error
        losses, loss_by_task = (arrays.pop(f"standing/{name}") for name in ("held_out_losses", "loss_by_task"))
        stats = None if manifest.seq < 0 else EpochStats(manifest.seq, loss_by_task)
        best = {name.removeprefix(_BEST): array for name, array in arrays.items() if name.startswith(_BEST)}
        own = {name: array for name, array in arrays.items() if not name.startswith(_BEST)}
        return Standing(manifest.epoch, stats, losses.tolist()), own, best or None

    def delete(self) -> None:
        """Delete what is there, since the base is written."""
        delete_artifact(self.url)
