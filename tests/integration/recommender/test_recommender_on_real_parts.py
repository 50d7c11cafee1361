"""The recommender as a process on a real broker, Redis and Triton: whole answers, one trace, and what it says when a part dies."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from redis.asyncio import Redis
from tunemesh.catalog.v1 import catalog_item_pb2
from tunemesh.recommender.v1 import recommender_service_pb2 as pb
from tunemesh.recommender.v1 import recommender_service_pb2_grpc as pb_grpc

from services.common.platform.ids import entity_key
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.telemetry_files import read_spans
from services.common.ranker import exposure_block
from services.common.ranker.feature_records import global_key, item_key, neighbours_key, popular_key, seen_key, user_key
from services.common.ranker.recall_state import pack_counts
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState
from services.common.ranker.tables.control_block import Applied
from services.common.ranker.tables.writer import ModelWriter, TableImage
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.recommender.triton_ranker import TritonRanker
from tests.limits import seconds
from tests.recommender_fakes import SPEC

pytestmark = pytest.mark.integration

ENVIRONMENTS = Environments.of_repository()
NUM_ITEMS = 60
CATEGORIES = {str(number): ["Drama", "Comedy", "War"][number % 3] for number in range(NUM_ITEMS)}
DUMP_NETWORK = """
import sys, numpy as np
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.registry import make_network
np.savez(sys.argv[2], **make_network(FeatureSpec.load(sys.argv[1])).state())
"""


@dataclass
class Parts:
    """What a test may look at or kill."""

    stub: pb_grpc.RecommenderServiceStub
    triton_url: str
    telemetry: Path
    redis: embedded.EmbeddedServer
    redis_port: int
    triton_pid: int


def write_tables(folder: Path, scratch: Path) -> None:
    """Build a base with rows for user 7 and half of the items; the weights are the untrained network's."""
    spec_path = REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml"
    command = [str(ENVIRONMENTS.python("ml")), "-c", DUMP_NETWORK, str(spec_path), str(scratch / "network.npz")]
    subprocess.run(command, cwd=REPOSITORY_ROOT, check=True, timeout=seconds(120))
    random, dim = np.random.default_rng(1), SPEC.tables.item.dim

    def image(ids: list[int]) -> TableImage:
        return TableImage(np.array(ids), random.normal(0, 0.5, (len(ids), dim)).astype(np.float32), np.zeros(dim, np.float32))

    with np.load(scratch / "network.npz", allow_pickle=False) as dense:
        weights = {name: dense[name] for name in dense.files}
    writer = ModelWriter(folder, SPEC.schema_hash)
    tables = {"user": image([7]), "item": image(list(range(NUM_ITEMS // 2)))}
    writer.build(tables, weights, Applied(epoch=4, seq=17, watermark_ms=1_000, base_id="b"), lineage_id="l")
    writer.close()


async def write_features(url: str) -> None:
    """As the feature stream would: user 7 rated items 0..4, everyone rated low numbers more often."""
    total, user, items = GlobalState(partitions=2), UserState(), {}
    for rater in range(40):
        for number in range(1 + rater % 20):
            act = Interaction("7" if rater == 4 else f"r{rater}", str(number), "rating", 1.0 + (rater + number) % 5, 0)
            total.apply(SPEC, act, [CATEGORIES[act.item_id]], -1)
            items.setdefault(act.item_id, ItemState()).apply(SPEC, act, total.clock, -1)
            if act.user_id == "7":
                user.apply(SPEC, act, [CATEGORIES[act.item_id]], -1)
    values = {item_key(item_id, "0"): state.to_bytes(SPEC) for item_id, state in items.items()}
    values |= {user_key("7"): user.to_bytes(), global_key("0"): total.to_bytes()}
    values |= {popular_key("0"): pack_counts([("0", 9.0), ("10", 8.0)]), neighbours_key("4", "0"): pack_counts([("20", 3.0)])}
    async with Redis.from_url(url) as client:
        await client.mset(values)
        await client.sadd(seen_key("7"), *(entry.item_id for entry in user.history))


def write_catalog(bootstrap: str) -> None:
    producer = durable_producer(bootstrap, client_id="test")
    for item_id, category in CATEGORIES.items():
        item = catalog_item_pb2.CatalogItem(item_id=item_id, categories=[category])
        producer.send("catalog.v1", key=item_id.encode(), value=item.SerializeToString())
    producer.flush()
    producer.close()


def start_redis(port: int, log: Path) -> embedded.EmbeddedServer:
    command = embedded.redis_command(ENVIRONMENTS, port=port)
    return embedded.EmbeddedServer(command, log=log, ready=lambda: embedded.redis_ready(port))


@pytest.fixture
async def parts(fresh_broker, mesh_topics, triton, tmp_path):
    port, redis_port = embedded.free_ports(2)
    redis_url = f"redis://127.0.0.1:{redis_port}/0"
    mesh_topics(fresh_broker.bootstrap)
    write_catalog(fresh_broker.bootstrap)
    redis = start_redis(redis_port, tmp_path / "redis.log")
    await write_features(redis_url)
    write_tables(tmp_path / "tables", tmp_path)
    shared = {
        "TUNEMESH_TABLES_DIR": str(tmp_path / "tables"),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "0",
        "OMP_NUM_THREADS": "1",
    }
    server = triton(env=shared)
    own = {
        "TUNEMESH_RECOMMENDER_PORT": str(port),
        "TUNEMESH_RECOMMENDER_TRITON_TIMEOUT_MS": "3000",
        "TUNEMESH_RECOMMENDER_REDIS_TIMEOUT_MS": "2000",
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "REDIS_URL": redis_url,
        "TRITON_URL": server.url,
    }
    with (tmp_path / "recommender.log").open("w") as log:
        command = [sys.executable, "-m", "services.recommender"]
        process = subprocess.Popen(command, env={**os.environ, **shared, **own}, cwd=REPOSITORY_ROOT, stderr=log)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        running = Parts(stub, server.url, tmp_path / "telemetry", redis, redis_port, server.pid)
        yield running
    process.send_signal(signal.SIGTERM)
    assert process.wait(seconds(60)) == 0
    running.redis.stop()


async def answer_until(parts: Parts, request: pb.RecommendRequest, condition, timeout_s: float = 90.0) -> pb.RecommendResponse:
    deadline = time.monotonic() + seconds(timeout_s)
    while True:
        response = await parts.stub.Recommend(request, timeout=max(10.0, deadline - time.monotonic()), wait_for_ready=True)
        if condition(response):
            return response
        assert time.monotonic() < deadline, response
        await asyncio.sleep(0.1)


async def test_answers_are_whole_explained_traced_and_say_what_is_missing_when_a_part_dies(parts):
    candidates = [str(number) for number in range(0, NUM_ITEMS, 2)]
    named = pb.RecommendRequest(user_id="7", candidates=candidates, limit=20)
    response = await answer_until(parts, named, lambda answer: not answer.degraded_reason)
    assert (response.model_version, response.seq_min, response.seq_max) == ("4.17", 17, 17)
    assert len(response.items) == 20 and {item.item_id for item in response.items} <= set(candidates)
    assert [item.score for item in response.items] == sorted((item.score for item in response.items), reverse=True)

    # What was logged is what was scored: the block alone gives the same scores again.
    ranker = TritonRanker(parts.triton_url, num_tasks=2, timeout_s=5.0)
    keys = [entity_key(item.item_id) for item in response.items]
    again = await ranker.score(7, keys, response.features_block, time.monotonic() + seconds(5))
    await ranker.close()
    np.testing.assert_allclose(again.scores_NT, [list(item.task_scores) for item in response.items], atol=1e-6)
    assert exposure_block.decode(response.features_block, SPEC).history_keys_L.tolist() == [4, 3, 2, 1, 0]

    # Recall: every channel at work, nothing that the user has seen.
    is_open = pb.RecommendRequest(user_id="7", limit=60)

    def is_whole(answer: pb.RecommendResponse) -> bool:
        return not answer.degraded_reason and any("embedding" in item.reasons for item in answer.items)

    recalled = await answer_until(parts, is_open, is_whole)
    reasons = {reason for item in recalled.items for reason in item.reasons}
    assert {"embedding", "popular", "similar_to:4", "cold_start"} <= reasons
    assert not {item.item_id for item in recalled.items} & {"0", "1", "2", "3", "4"}

    # One trace: caller -> recommender -> Triton.
    trace_id, caller = "a" * 32, "b" * 16
    await parts.stub.Recommend(named, metadata=(("traceparent", f"00-{trace_id}-{caller}-01"),))
    deadline = time.monotonic() + seconds(10)
    while len(spans := [span for span in read_spans(parts.telemetry) if span["trace_id"] == trace_id]) < 2:
        assert time.monotonic() < deadline, spans
        await asyncio.sleep(0.1)
    by_name = {span["name"]: span for span in spans}
    assert by_name["recommender.Recommend"]["parent_id"] == caller
    assert by_name["triton.ranker"]["parent_id"] == by_name["recommender.Recommend"]["span_id"]

    # Redis dies and comes back empty; then Triton dies.
    parts.redis.kill()
    blind = await answer_until(parts, named, lambda answer: answer.degraded_reason == "features_unavailable")
    assert blind.features_block == b"" and blind.model_version == "4.17"
    parts.redis = start_redis(parts.redis_port, parts.telemetry / "redis.log")
    forgetful = await answer_until(parts, named, lambda answer: not answer.degraded_reason)
    assert forgetful.features_block and all("cold_start" in item.reasons for item in forgetful.items)
    os.kill(parts.triton_pid, signal.SIGKILL)
    last = await answer_until(parts, named, lambda answer: answer.degraded_reason == "ranker_unavailable")
    assert last.model_version == "" and [item.item_id for item in last.items] == candidates[:20]
