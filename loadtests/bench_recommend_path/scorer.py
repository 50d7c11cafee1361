"""The ranking model under measurement, run by path like `worker.py` but in the ml environment: model.py itself, without a tritonserver.

    python scorer.py TABLES_FOLDER

For each line with a number it scores a hundred items so many times and prints processor seconds a call, by stage.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import older  # type: ignore[import-not-found]  # noqa: F401  # beside this file, which is run by path; before the project's modules
import torch
import world  # type: ignore[import-not-found]  # beside this file too
from torch.utils.dlpack import to_dlpack

from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.feature_records import item_key, user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, UserState, merge_globals, merge_item_bytes
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.writer import ModelWriter, TableImage

_PARTIALS = ("b", "0", "1")


class Tensor:
    """What pb_utils.Tensor does of use here: values by DLPack."""

    def __init__(self, name: str, values: torch.Tensor) -> None:
        self._name, self.values = name, values

    def name(self) -> str:
        """Return its name."""
        return self._name

    def to_dlpack(self) -> Any:
        """Return a capsule."""
        return to_dlpack(self.values)

    @classmethod
    def from_dlpack(cls, name: str, values: Any) -> Tensor:
        """Keep the values."""
        return cls(name, values)


class Request:
    """What pb_utils.InferenceRequest does of use here."""

    def __init__(self, tensors: dict[str, np.ndarray], outputs: list[str]) -> None:
        self.tensors = {name: Tensor(name, torch.from_numpy(values)) for name, values in tensors.items()}
        self._outputs = outputs

    def parameters(self) -> str:
        """Return a sampled caller's span."""
        return json.dumps({"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})

    def requested_output_names(self) -> list[str]:
        """Return what the recommender asks for."""
        return self._outputs


class Response:
    """What pb_utils.InferenceResponse does of use here."""

    def __init__(self, outputs: Sequence[Tensor] = (), error: Exception | None = None) -> None:
        if error is not None:
            raise error
        self.outputs = outputs


def stand_in_backend() -> types.ModuleType:
    """Return what a model may import of Triton's Python backend."""
    module = types.ModuleType("triton_python_backend_utils")
    members = {
        "Tensor": Tensor,
        "InferenceResponse": Response,
        "TritonError": type("TritonError", (Exception,), {"UNAVAILABLE": 1, "INVALID_ARG": 2}),
        "TritonModelException": Exception,
        "get_input_tensor_by_name": lambda request, name: request.tensors[name],
    }
    module.__dict__.update(members)
    return module


def write_tables(folder: Path, spec: FeatureSpec, dense: dict[str, np.ndarray]) -> None:
    """Build a base with a row for every item and user."""
    rng, dim = np.random.default_rng(4), spec.tables.item.dim

    def image(count: int) -> TableImage:
        rows = rng.normal(0, 0.5, (count, dim)).astype(np.float32)
        return TableImage(np.arange(count), rows, np.zeros(dim, np.float32))

    tables = {"user": image(world.NUM_USERS), "item": image(world.NUM_ITEMS)}
    writer = ModelWriter(folder, spec.schema_hash)
    writer.build(tables, dense, Applied(epoch=1, seq=1, watermark_ms=1, base_id="b"), lineage_id="l")
    writer.close()


def model_requests(spec: FeatureSpec, count: int) -> list[Request]:
    """Return requests as the recommender sends them."""
    records = dict(world.records(spec))
    totals = [GlobalState.from_bytes(records[f"tm:g:{partial}"]) for partial in _PARTIALS]
    categories, merged = world.categories(), merge_globals(totals)
    made = []
    for user_id, item_ids in world.requests(5, count):
        packed = records.get(user_key(user_id))
        user = None if packed is None else UserState.from_bytes(spec, packed)
        items = merge_item_bytes(spec, [[records.get(item_key(item_id, partial)) for item_id in item_ids] for partial in _PARTIALS], totals)
        features = build_features(spec, user_id, user, items, [categories[item_id] for item_id in item_ids], merged)
        tensors = {
            "USER_ID": np.array([entity_key(user_id)]),
            "ITEM_IDS": np.array([entity_key(item_id) for item_id in item_ids]),
            "FEATURES": np.frombuffer(bytearray(exposure_block.encode(features, spec.schema_hash)), dtype=np.uint8),
        }
        made.append(Request(tensors, ["SCORES", "VERSION"]))
    return made


def ready_model(folder: Path) -> Any:
    """Return model.py's model over a base in `folder`, warm."""
    sys.modules["triton_python_backend_utils"] = stand_in_backend()
    sys.path.insert(0, "model_repo/ranker/1")
    import model  # type: ignore[import-not-found]  # found by the path above

    spec = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
    # Another checkout may be from before networks could be chosen.
    make_network = vars(model).get("make_network") or model.RankerNetwork
    write_tables(folder, spec, make_network(spec, 1).state())
    os.environ["TUNEMESH_TABLES_DIR"] = str(folder)
    served = model.TritonPythonModel()
    served.initialize({})
    deadline = time.monotonic() + 300.0
    while served._opener.scorer is None:
        if time.monotonic() > deadline:
            raise TimeoutError("the model did not open its tables")
        time.sleep(0.05)
    return served


def main() -> None:
    """Score as often as each line of standard input says."""
    served = ready_model(Path(sys.argv[1]))
    spec = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
    requests = model_requests(spec, 50)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        started = time.process_time()
        for at in range(count):
            [response] = served.execute([requests[at % len(requests)]])
        took = (time.process_time() - started) / count
        scores = response.outputs[0].values.numpy()
        print(json.dumps({"execute": took, "sum": float(scores.sum())}), flush=True)
    served.finalize()


if __name__ == "__main__":
    main()
