"""What a Recommend of named candidates computes, in a peer's processes: online states, features, rows and network, a sorted answer.

Imports of the light environment (redis) and of the ml one (torch) meet here, as a peer's author would have them in one image. Where Redis
is and where tables may be written stand in BENCH_REDIS_URL and BENCH_TABLES.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.bench_recommend_path import world
from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features, build_features
from services.recommender.redis_features import RedisFeatureStore, connect

_ROOT = Path(__file__).resolve().parents[2]
SPEC = _ROOT / "model_repo" / "ranker" / "feature_spec.yaml"
MOST_TOGETHER = 16
"""Requests that may share a step of the network: as many as are asked at once."""
# As for the mesh: requests come every 5 ms of the store's clock, so what its cache holds does not depend on the machine.
_REQUEST_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with its features; item_keys_N: int64 [N]."""

    item_ids: Sequence[str]
    user_key: int
    item_keys_N: npt.NDArray[np.int64]
    features: Features


class Reader:
    """Reads states and makes features, with the cache of item states that the mesh has."""

    def __init__(self) -> None:
        """Connects when it is first asked, on the event loop of whoever asks."""
        self.spec = FeatureSpec.load(SPEC)
        self._clock_s = 0.0
        self._store = RedisFeatureStore(
            connect(os.environ["BENCH_REDIS_URL"], 5.0),
            self.spec,
            user_partitions=world.PARTITIONS,
            cache_ttl_s=0.5,
            cache_size=50_000,
            backoff_s=0.5,
            clock=lambda: self._clock_s,
        )
        self._categories = world.categories()

    async def asked(self, user_id: str, item_ids: Sequence[str]) -> Asked:
        """Return a request with its features; raises FeaturesUnavailable."""
        self._clock_s += _REQUEST_EVERY_S
        state = await self._store.read(user_id, item_ids)
        categories = [self._categories[item_id] for item_id in item_ids]
        features = build_features(self.spec, user_id, state.user, state.items, categories, state.total)
        return Asked(item_ids, entity_key(user_id), state.item_keys_N, features)


class Ranker:
    """The scorer that Triton runs in the mesh, without Triton, over tables of the same seed."""

    def __init__(self) -> None:
        """Write the tables and open them, which takes seconds."""
        import scorer  # type: ignore[import-not-found]  # of bench_recommend_path, found by PYTHONPATH; imports torch

        with contextlib.chdir(_ROOT):
            served = scorer.ready_model(Path(os.environ["BENCH_TABLES"]))
        self._scorer = served._opener.scorer
        self._spec = FeatureSpec.load(SPEC)

    def scores(self, asked: Sequence[Asked]) -> list[npt.NDArray[np.float32]]:
        """Return float32 [N, T] of each request, scored in one step."""
        users_G = np.array([one.user_key for one in asked], np.int64)
        scored = self._scorer.score(users_G, np.concatenate([one.item_keys_N for one in asked]), [one.features for one in asked])
        return np.split(scored.scores_NT, np.cumsum(scored.sizes_G)[:-1])

    def unpacked(self, packed: tuple[int, bytes, bytes]) -> Asked:
        """Return what `packed` made, without the ids."""
        user_key, item_keys, block = packed
        [features] = exposure_block.decode_all(block, self._spec)
        return Asked((), user_key, np.frombuffer(item_keys, np.int64), features)


def packed(spec: FeatureSpec, asked: Asked) -> tuple[int, bytes, bytes]:
    """Return a request as one part of a peer sends it to the other: in the mesh's own compact form."""
    return asked.user_key, asked.item_keys_N.tobytes(), exposure_block.encode(asked.features, spec.schema_hash)


def answer(spec: FeatureSpec, item_ids: Sequence[str], scores_NT: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the answer, best first, as JSON has it."""
    rank_N = spec.blended(scores_NT)
    order_N = np.argsort(-rank_N, kind="stable").tolist()
    ranks, scores = rank_N.tolist(), scores_NT.tolist()
    return {"items": [{"item_id": item_ids[row], "score": ranks[row], "task_scores": scores[row]} for row in order_N]}
