"""Both halves of the mesh in small: no base, few films, and a tiny language model that a short tune teaches (tests/tiny_loop.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tunemesh.events.v1.exposure_pb2 import Exposure

from loadtests.bare_mesh import RANKING, bare_mesh
from loadtests.demo.accounting import read_all
from loadtests.movielens import load_films
from services.common.events.topics import EXPOSURES
from services.common.platform.ids import entity_key
from services.common.platform.telemetry_files import read_spans
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh
from services.recommender.triton_ranker import TritonRanker
from tests import tiny_loop
from tests.limits import seconds

SERVICES = (*RANKING, "quality", "llm", "retriever", "prompt_assembler", "curator", "tuner")
FILMS = [str(number) for number in range(1, 41)]
FARGO = "100"
SETTINGS = {
    "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "1.0",
    "TUNEMESH_TRAINER_CHECKPOINT_INTERVAL_MS": "1000",
    "TUNEMESH_TRAINER_KEEP_CHECKPOINTS": "100",
    "TUNEMESH_QUALITY_WINDOW_MS": "2000",
    # That no answer is degraded and no feedback an orphan must hold on a machine that stands still for a second.
    "TUNEMESH_RECOMMENDER_REDIS_TIMEOUT_MS": "3000",
    "TUNEMESH_RECOMMENDER_TRITON_TIMEOUT_MS": "5000",
    "TUNEMESH_JOINER_WINDOW_MS": "3000",
}
FEATURES = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Oslo", "Rome"]}},
    {"raw_feature": {"feature_name": "price", "expression": "item:price", "normalizer": "method=log10"}},
    {"raw_feature": {"feature_name": "hour", "expression": "context:hour", "boundaries": [6, 12, 18]}},
    {"expr_feature": {"feature_name": "afford", "expression": "budget >= price", "variables": ["context:budget", "item:price"]}},
]
"""What a team declares beside the counters; most tests say nothing of it, and it is absent then."""
LIKE = 1  # column of Triton's scores
_START_LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the replica says of each item that an answer showed, for the features that it was made of."""

    like: dict[str, float]
    version: str


@dataclass(frozen=True, slots=True)
class SmallMesh:
    """A running mesh and its folder."""

    mesh: Mesh
    folder: Path
    spec: FeatureSpec

    @property
    def kafka(self) -> str:
        """The broker's address."""
        return self.mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]

    @property
    def run_dir(self) -> Path:
        """What the operator's commands need to know."""
        return self.mesh.folder.path

    def spans(self) -> list[dict[str, Any]]:
        """Return all that was traced so far."""
        return read_spans(self.folder / "telemetry")

    def exposure(self, request_id: str) -> Exposure | None:
        """Return what was logged of an answer, None when nothing is yet."""
        logged = (Exposure.FromString(value) for value in read_all(self.kafka, EXPOSURES.name))
        return next((exposure for exposure in logged if exposure.request_id == request_id), None)

    def predict(self, exposure: Exposure) -> Prediction:
        """Ask the replica again for what an answer was made of: the same features, so that only what was learned makes a difference."""
        return asyncio.run(self._predict(exposure))

    async def _predict(self, exposure: Exposure) -> Prediction:
        ranker = TritonRanker(self.mesh.address("triton", 8001), num_tasks=2, timeout_s=seconds(20))
        keys = [entity_key(item_id) for item_id in exposure.item_ids]
        try:
            scores = await ranker.score(entity_key(exposure.user_id), keys, exposure.features_block, time.monotonic() + seconds(20))
        finally:
            await ranker.close()
        likes = np.asarray(scores.scores_NT)[:, LIKE]
        return Prediction(dict(zip(exposure.item_ids, map(float, likes), strict=True)), f"{scores.epoch}.{scores.seq_max}")


def write_spec(path: Path) -> FeatureSpec:
    """Write the spec that ships with declared features added, and return it."""
    shipped = yaml.safe_load((REPOSITORY_ROOT / "model_repo/ranker/feature_spec.yaml").read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(shipped | {"format": 2, "features": FEATURES}), encoding="utf-8")
    return FeatureSpec.load(path)


@contextmanager
def small_mesh(folder: Path, *, mlflow_url: str) -> Iterator[SmallMesh]:
    """Start it, its log in memory and its MLflow a server outside, and yield it when its answers are whole."""
    spec = write_spec(folder / "spec.yaml")
    films = {item_id: film for item_id, film in load_films().items() if item_id in {*FILMS, FARGO}}
    env = SETTINGS | tiny_loop.mesh_env(folder) | {"MLFLOW_TRACKING_URI": mlflow_url, "TUNEMESH_FEATURE_SPEC": spec.source}
    with bare_mesh(folder, services=SERVICES, durable_broker=False, films=films, env=env, limit_s=seconds(_START_LIMIT_S)) as mesh:
        yield SmallMesh(mesh, folder, spec)
