"""A frozen copy of the base that scores the logged exposures: what the same model with the same live features does when it stops learning.

Run by the demo in the ml environment: python -m loadtests.demo.frozen --base FOLDER --spec FILE --kafka HOST:PORT --out FILE.jsonl
Reads exposures.v1 and feedback.v1 from their beginning (it keeps no state) and appends one line per rated item. It never trains.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import torch
from tunemesh.events.v1 import exposure_pb2, feedback_pb2

from loadtests.metrics import ndcg_of_target
from services.common.events.topics import EXPOSURES, FEEDBACK
from services.common.platform.artifacts import read_artifact
from services.common.platform.ids import entity_key
from services.common.platform.kafka import assigned_consumer
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import assemble
from services.common.ranker.networks.interface import Rows
from services.common.ranker.networks.registry import make_network
from services.common.ranker.pooling import Pool

_BATCH = 16

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class FrozenRanker:
    """The base's rows and dense weights, read once."""

    def __init__(self, spec: FeatureSpec, base: Path) -> None:
        """Read the base. Raises CorruptArtifact when it is damaged or of another spec."""
        torch.set_num_threads(1)
        _, arrays = read_artifact(base, expect_schema_hash=spec.schema_hash, only=lambda name: name.startswith(("table/", "dense/")))
        self._spec = spec
        self._tables = {name: (arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"]) for name in spec.table_dims}
        self._network = make_network(spec).eval()
        self._network.load({name.removeprefix("dense/"): value for name, value in arrays.items() if name.startswith("dense/")})

    def score(self, exposures: Sequence[exposure_pb2.Exposure]) -> list[Float32Array]:
        """Return per exposure float32 [N, T]: probabilities of the exposed items, in their order, from the logged features."""
        parts = []
        for exposure in exposures:
            keys_N = np.array([entity_key(item) for item in exposure.item_ids], np.int64)
            parts.append((exposure_block.decode(exposure.features_block, self._spec), keys_N))
        inputs = assemble(self._spec, parts)
        rows = Rows(
            self._rows("user", inputs.user_keys_G), self._rows("item", inputs.item_keys_B), self._rows("item", inputs.history_keys_GL)
        )
        if inputs.keys is not None:
            pool = Pool(self._spec.plan, inputs.keys)
            rows = rows.with_pooled(pool.pooled({table: self._rows(table, ids).numpy() for table, ids in pool.ids.items()}))
        with torch.inference_mode():
            scores: Float32Array = torch.sigmoid(self._network(inputs, rows)).numpy()
        return np.split(scores, np.cumsum([len(exposure.item_ids) for exposure in exposures])[:-1])

    def _rows(self, table: str, keys: Int64Array) -> torch.Tensor:
        """Return the rows of `keys`; unknown ids read zeros, as in the live tables."""
        ids, rows = self._tables[table]
        if not len(ids):
            return torch.zeros((*keys.shape, rows.shape[1]))
        at = np.minimum(np.searchsorted(ids, keys), len(ids) - 1)
        found = ids[at] == keys
        return torch.from_numpy(np.where(found[..., None], rows[at], np.float32(0.0)))


class Evaluator:
    """Meets exposures and the feedback on them, in either order, and writes a line for each pair."""

    def __init__(self, ranker: FrozenRanker, spec: FeatureSpec, out: TextIO) -> None:
        """`out` gets JSON lines."""
        self._ranker, self._out = ranker, out
        self._interact, self._like = spec.task_names.index("interact"), spec.task_names.index("like")
        self._exposures: dict[str, exposure_pb2.Exposure] = {}
        self._answers: dict[str, str] = {}
        self._done: set[str] = set()
        self._pairs: list[tuple[exposure_pb2.Exposure, str]] = []

    def on_exposure(self, exposure: exposure_pb2.Exposure) -> None:
        """Take an exposure; open recommendations and answers without features are not compared."""
        if not exposure.candidates_given or not exposure.features_block:
            return
        item_id = self._answers.pop(exposure.request_id, None)
        if item_id is None:
            self._exposures[exposure.request_id] = exposure
        else:
            self._meet(exposure, item_id)

    def on_feedback(self, feedback: feedback_pb2.Feedback) -> None:
        """Take a rating."""
        exposure = self._exposures.pop(feedback.request_id, None)
        if exposure is not None:
            self._meet(exposure, feedback.item_id)
        elif feedback.request_id not in self._done:
            self._answers[feedback.request_id] = feedback.item_id

    def flush(self) -> None:
        """Score the pairs that have met, several at once, and write their lines."""
        while self._pairs:
            batch, self._pairs = self._pairs[:_BATCH], self._pairs[_BATCH:]
            for (exposure, item_id), scores_NT in zip(batch, self._ranker.score([exposure for exposure, _ in batch]), strict=True):
                self._write(exposure, item_id, scores_NT.astype(np.float64))
        self._out.flush()

    def _meet(self, exposure: exposure_pb2.Exposure, item_id: str) -> None:
        self._done.add(exposure.request_id)
        self._pairs.append((exposure, item_id))

    def _write(self, exposure: exposure_pb2.Exposure, item_id: str, scores_NT: npt.NDArray[np.float64]) -> None:
        target = list(exposure.item_ids).index(item_id)
        row = {
            "request_id": exposure.request_id,
            "like": float(scores_NT[target, self._like]),
            "ndcg": ndcg_of_target(scores_NT[:, self._interact], target),
        }
        self._out.write(json.dumps(row) + "\n")


def follow(kafka: str, evaluator: Evaluator) -> None:
    """Read both topics for ever."""
    consumers = {
        topic.name: assigned_consumer(kafka, topic.name, start="beginning", client_id="demo-frozen", fetch_max_wait_ms=1_000)
        for topic in (EXPOSURES, FEEDBACK)
    }
    while True:
        for value in _poll(consumers[EXPOSURES.name]):
            evaluator.on_exposure(exposure_pb2.Exposure.FromString(value))
        for value in _poll(consumers[FEEDBACK.name]):
            evaluator.on_feedback(feedback_pb2.Feedback.FromString(value))
        evaluator.flush()


def _poll(consumer: object) -> Iterator[bytes]:
    batches = consumer.poll(timeout_ms=200, max_records=200)  # type: ignore[attr-defined]
    for records in batches.values():
        yield from (record.value for record in records)


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("base", "spec", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--kafka", required=True)
    options = parser.parse_args()
    spec = FeatureSpec.load(options.spec)
    # A second start begins again: lines that stand there already are written once more with the same numbers.
    with options.out.open("a", encoding="utf-8") as out:
        follow(options.kafka, Evaluator(FrozenRanker(spec, options.base), spec, out))


if __name__ == "__main__":
    main()
