"""The ranker on a real tritonserver against the network in process. Speaks HTTP, since the ml environment has no Triton client."""

import contextlib
import json
import time
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.platform.ids import entity_key
from services.common.platform.telemetry_files import read_spans
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState, merge_globals, merge_item_bytes
from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.conftest import TritonServer
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.ml]

SPEC_PATH = REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml"
SPEC = FeatureSpec.load(SPEC_PATH)
DIM = SPEC.tables.item.dim
NUM_ITEMS = 40
DTYPES = {"FP32": np.float32, "INT64": np.int64}


class Client:
    """Triton's HTTP protocol with binary outputs."""

    def __init__(self, http_url: str) -> None:
        self._url = http_url

    def infer(self, user_keys: int | list[int], item_keys: list[int], block: bytes, **parameters: str) -> dict[str, np.ndarray]:
        """Return the outputs by name; RuntimeError with Triton's message for an error."""
        users = [user_keys] if isinstance(user_keys, int) else user_keys
        tensors = [("USER_ID", "INT64", users), ("ITEM_IDS", "INT64", item_keys), ("FEATURES", "UINT8", list(block))]
        inputs = [{"name": name, "datatype": kind, "shape": [len(data)], "data": data} for name, kind, data in tensors]
        body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, **parameters}})
        connection = HTTPConnection(self._url, timeout=seconds(30))
        connection.request("POST", "/v2/models/ranker/infer", body)
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(json.loads(raw)["error"])
        head = int(response.headers["Inference-Header-Content-Length"])
        outputs, at = {}, head
        for output in json.loads(raw[:head])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            outputs[output["name"]] = np.frombuffer(raw[at : at + size], DTYPES[output["datatype"]]).reshape(output["shape"])
            at += size
        return outputs

    def infer_when_ready(self, user_key: int, item_keys: list[int], block: bytes, timeout_s: float = 60.0) -> dict[str, np.ndarray]:
        deadline = time.monotonic() + seconds(timeout_s)
        while True:
            try:
                return self.infer(user_key, item_keys, block)
            except RuntimeError as error:
                assert "no base yet" in str(error) and time.monotonic() < deadline, error
                time.sleep(0.1)


def some_features(user_id: str, num_items: int):
    """Features of a user with a history and of items with counters, as the recommender builds them."""
    random = np.random.default_rng(5)
    user, total, items = UserState(), GlobalState(), [ItemState() for _ in range(num_items)]
    for number in random.integers(0, num_items, 60).tolist():
        act = Interaction(user_id, str(number), "rating", float(random.integers(1, 6)), 0)
        total.apply(SPEC, act, ["Drama"], -1)
        user.apply(SPEC, act, ["Drama"], -1)
        items[number].apply(SPEC, act, total.clock, -1)
    matrix = merge_item_bytes(SPEC, [[state.to_bytes(SPEC) for state in items]], [total])
    return build_features(SPEC, user_id, user, matrix, [("Drama",), ()] * (num_items // 2), merge_globals([total]))


FEATURES = some_features("7", NUM_ITEMS)
BLOCK = exposure_block.encode(FEATURES, SPEC.schema_hash)
# Half of the items have no row: they read the default row.
ITEM_KEYS = list(range(NUM_ITEMS // 2)) + [entity_key(f"unknown-{number}") for number in range(NUM_ITEMS // 2)]


def base(seed: int = 1):
    """Return (tables, dense weights, network) of a made-up base with a row for user 7 and for half of the items."""
    from services.common.ranker.networks.registry import make_network
    from services.common.ranker.tables.writer import TableImage

    random = np.random.default_rng(seed)
    network = make_network(SPEC, seed)

    def image(num_rows: int, first: int) -> TableImage:
        ids = np.arange(first, first + num_rows, dtype=np.int64)
        rows = random.normal(0, 0.5, (num_rows, DIM)).astype(np.float32)
        return TableImage(ids, rows, random.normal(0, 0.1, DIM).astype(np.float32))

    return {"user": image(3, 6), "item": image(NUM_ITEMS // 2, 0)}, network.state(), network


def expected_scores(tables, network, user_key: int) -> np.ndarray:
    import torch

    from services.common.ranker.inputs import assemble
    from services.common.ranker.networks.interface import Rows
    from services.common.ranker.networks.scoring import score

    def rows(table: str, keys) -> torch.Tensor:
        image = tables[table]
        by_id = dict(zip(image.ids.tolist(), image.rows, strict=True))
        return torch.from_numpy(np.stack([by_id.get(key, image.default_row) for key in keys]))

    inputs = assemble(SPEC, [(FEATURES, np.array(ITEM_KEYS))])
    history = rows("item", inputs.history_keys_GL[0].tolist()).unsqueeze(0)
    return score(network, inputs, Rows(rows("user", [user_key]), rows("item", ITEM_KEYS), history))


def applied(epoch: int, seq: int, watermark_ms: int):
    from services.common.ranker.tables.control_block import Applied

    return Applied(epoch=epoch, seq=seq, watermark_ms=watermark_ms, base_id="base-1")


@dataclass(frozen=True)
class Served:
    """A Triton, the writer of its tables, its telemetry, and what it said before there was a base."""

    client: Client
    writer: Any
    telemetry: Path
    said_without_base: str


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One Triton for all tests of this file, over a tables folder that was empty; each test builds a base of its own."""
    from services.common.ranker.tables.writer import ModelWriter

    folder = tmp_path_factory.mktemp("ranker")
    env = {
        "TUNEMESH_TABLES_DIR": str(folder / "tables"),
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "1.0",
        "OMP_NUM_THREADS": "1",
    }
    with contextlib.ExitStack() as running:
        server = TritonServer(folder, repository=REPOSITORY_ROOT / "model_repo", models=("ranker",), env=env)
        running.callback(server.stop)
        client = Client(server.http_url)
        with pytest.raises(RuntimeError) as caught:
            client.infer(7, ITEM_KEYS, BLOCK)
        writer = running.enter_context(contextlib.closing(ModelWriter(folder / "tables", SPEC.schema_hash)))
        yield Served(client, writer, folder / "telemetry", str(caught.value))


def test_the_ranker_serves_what_the_network_says_and_follows_deltas_without_a_reload(served):
    import crc32c

    from services.common.ranker.delta import DeltaBody, TableDelta

    client, writer = served.client, served.writer
    assert "ranker has no base yet" in served.said_without_base

    tables, dense, network = base()
    writer.build(tables, dense, applied(2, 10, 1_000), lineage_id="l")
    answer = client.infer_when_ready(7, ITEM_KEYS, BLOCK)
    np.testing.assert_allclose(answer["SCORES"], expected_scores(tables, network, 7), rtol=0, atol=1e-6)
    assert answer["VERSION"].tolist() == [2, 10, 10]
    assert answer["WATERMARK_MS"].tolist() == [1_000]
    assert answer["USER_ROW_CRC"].tolist() == [crc32c.crc32c(tables["user"].rows[1].tobytes())]

    # A user without a row reads the default row; the features in the block are the caller's business.
    unknown = client.infer(12345, ITEM_KEYS, BLOCK)
    np.testing.assert_allclose(unknown["SCORES"], expected_scores(tables, network, 12345), rtol=0, atol=1e-6)
    assert unknown["USER_ROW_CRC"].tolist() == [crc32c.crc32c(tables["user"].default_row.tobytes())]

    # A delta with rows only.
    fresh = (tables["user"].rows[1:2] + 1).astype(np.float32)
    nothing = TableDelta(np.empty(0, np.int64), np.empty((0, DIM), np.float32), np.empty(0, np.int64))
    rows_only = DeltaBody({"user": TableDelta(np.array([7]), fresh, np.empty(0, np.int64)), "item": nothing}, None)
    writer.apply(rows_only, applied(2, 11, 2_000))
    tables["user"].rows[1] = fresh[0]
    moved = client.infer(7, ITEM_KEYS, BLOCK)
    np.testing.assert_allclose(moved["SCORES"], expected_scores(tables, network, 7), rtol=0, atol=1e-6)
    assert np.abs(moved["SCORES"] - answer["SCORES"]).max() > 0.01
    assert moved["VERSION"].tolist() == [2, 11, 11] and moved["WATERMARK_MS"].tolist() == [2_000]
    assert moved["USER_ROW_CRC"].tolist() == [crc32c.crc32c(fresh.tobytes())]

    # A delta with dense weights, then a whole new base under a new epoch.
    _, other_dense, other_network = base(seed=2)
    writer.apply(DeltaBody({}, other_dense), applied(2, 12, 3_000))
    dense_moved = client.infer(7, ITEM_KEYS, BLOCK)
    np.testing.assert_allclose(dense_moved["SCORES"], expected_scores(tables, other_network, 7), rtol=0, atol=1e-6)
    third_tables, third_dense, third_network = base(seed=3)
    writer.build(third_tables, third_dense, applied(3, 0, 4_000), lineage_id="l")
    rebuilt = client.infer(7, ITEM_KEYS, BLOCK)
    np.testing.assert_allclose(rebuilt["SCORES"], expected_scores(third_tables, third_network, 7), rtol=0, atol=1e-6)
    assert rebuilt["VERSION"].tolist() == [3, 0, 0] and rebuilt["WATERMARK_MS"].tolist() == [4_000]


def test_wrong_blocks_are_refused_and_a_span_continues_the_callers_trace(served):
    client, writer, telemetry = served.client, served.writer, served.telemetry
    tables, dense, _ = base()
    writer.build(tables, dense, applied(1, 0, 0), lineage_id="l")
    client.infer_when_ready(7, ITEM_KEYS, BLOCK)
    with pytest.raises(RuntimeError, match=f"FEATURES has {NUM_ITEMS} item rows for 3 ITEM_IDS"):
        client.infer(7, ITEM_KEYS[:3], BLOCK)
    with pytest.raises(RuntimeError, match="exposure block: feature spec 0000"):
        client.infer(7, ITEM_KEYS, exposure_block.encode(FEATURES, "0" * 16))
    with pytest.raises(RuntimeError, match="exposure block"):
        client.infer(7, ITEM_KEYS, b"nonsense")

    trace_id, span_id = "1" * 32, "2" * 16
    client.infer(7, ITEM_KEYS, BLOCK, traceparent=f"00-{trace_id}-{span_id}-01")
    deadline = time.monotonic() + seconds(10)
    while not (spans := [span for span in read_spans(telemetry) if span["trace_id"] == trace_id]):
        assert time.monotonic() < deadline, "no span of the caller's trace was written"
        time.sleep(0.1)
    assert [(span["name"], span["parent_id"], span["attributes"]["items"]) for span in spans] == [("triton.ranker", span_id, NUM_ITEMS)]


def test_several_users_in_one_request_are_scored_each_as_alone_and_each_has_a_span(served):
    client, writer, telemetry = served.client, served.writer, served.telemetry
    tables, dense, network = base()
    writer.build(tables, dense, applied(5, 3, 0), lineage_id="l")
    client.infer_when_ready(7, ITEM_KEYS, BLOCK)
    few = exposure_block.encode(replace(FEATURES, items_NF=FEATURES.items_NF[:3], user_key=6), SPEC.schema_hash)
    traces = ["a" * 32, "", "b" * 32]
    spans = ",".join(f"00-{trace}-{'2' * 16}-01" if trace else "" for trace in traces)
    together = client.infer([7, 6, 12345], [*ITEM_KEYS, *ITEM_KEYS[:3], *ITEM_KEYS], BLOCK + few + BLOCK, traceparent=spans)
    alone = [
        client.infer(user, keys, block) for user, keys, block in ((7, ITEM_KEYS, BLOCK), (6, ITEM_KEYS[:3], few), (12345, ITEM_KEYS, BLOCK))
    ]
    np.testing.assert_array_equal(together["SCORES"], np.concatenate([one["SCORES"] for one in alone]))
    np.testing.assert_array_equal(together["USER_ROW_CRC"], np.concatenate([one["USER_ROW_CRC"] for one in alone]))
    np.testing.assert_allclose(together["SCORES"][:NUM_ITEMS], expected_scores(tables, network, 7), rtol=0, atol=1e-6)
    assert together["VERSION"].tolist() == [5, 3, 3]
    with pytest.raises(RuntimeError, match="FEATURES has 2 blocks for 3 USER_ID"):
        client.infer([7, 6, 5], [*ITEM_KEYS, *ITEM_KEYS[:3]], BLOCK + few)
    with pytest.raises(RuntimeError, match=f"FEATURES has {NUM_ITEMS + 3} item rows for {NUM_ITEMS} ITEM_IDS"):
        client.infer([7, 6], ITEM_KEYS, BLOCK + few)

    deadline = time.monotonic() + seconds(10)
    while len(found := [span for span in read_spans(telemetry) if span["trace_id"] in traces]) < 2:
        assert time.monotonic() < deadline, "a caller's trace has no span"
        time.sleep(0.1)
    wanted = [("a" * 32, NUM_ITEMS, "5.3"), ("b" * 32, NUM_ITEMS, "5.3")]
    assert sorted((span["trace_id"], span["attributes"]["items"], span["attributes"]["model_version"]) for span in found) == wanted
