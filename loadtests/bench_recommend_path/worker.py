"""One process under measurement, run by path, so that the project's own modules come from whichever checkout PYTHONPATH names.

    python worker.py recommender REDIS_URL TRITON_HOST_PORT
    python worker.py router RECOMMENDER_HOST_PORT

It prints its port and serves until standard input is closed. For each line that it reads it prints its stages, JSON of processor seconds by
stage; "reset" sets them to nothing before.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import older  # type: ignore[import-not-found]  # noqa: F401  # beside this file, which is run by path; before the project's modules
import redis
import uvloop
import world  # type: ignore[import-not-found]  # beside this file too

from services.common.events.catalog import CatalogItem
from services.common.platform.grpc_server import GrpcServer
from services.common.platform.settings import load_settings
from services.common.platform.telemetry import configure
from services.common.ranker.feature_spec import FeatureSpec
from services.recommender.catalog import ItemIndex
from services.recommender.core import RecallLimits, Recommender
from services.recommender.redis_features import RedisFeatureStore, connect
from services.recommender.rules import Rules
from services.recommender.server import grpc_servicer
from services.recommender.servicer import RecommenderServicer
from services.recommender.settings import RecommenderSettings
from services.recommender.triton_ranker import TritonRanker
from services.router.grpc_recommender import GrpcRecommender
from services.router.records import Exposures
from services.router.server import AnswerClients, make_admission, make_router, servicer_of
from services.router.settings import RouterSettings

# Requests arrive every 5 ms of the store's clock, however fast they are answered here: what expires does not depend on the machine.
_REQUEST_EVERY_S = 0.005


class Stages:
    """Processor seconds of this process, all threads, by stage. For one request at a time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def around(self, owner: Any, method: str, stage: str) -> None:
        """Count what `owner.method` takes under `stage`."""
        inner: Callable[..., Awaitable[Any]] = getattr(owner, method)

        async def measured(*args: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return await inner(*args, **named)
            finally:
                self.seconds[stage] += time.process_time() - started

        setattr(owner, method, measured)


async def _serve(servicer: Any, settings: Any, telemetry: Any, stages: Stages) -> None:
    server = GrpcServer(settings, telemetry, [servicer])
    print(await server.start(), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "reset":
            stages.seconds.clear()
        print(json.dumps(stages.seconds), flush=True)
    await server.drain()


async def recommender(redis_url: str, triton: str) -> None:
    """Serve RecommenderService from real parts; the clock of the store is moved by its requests."""
    spec = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
    settings = load_settings(RecommenderSettings)
    telemetry = configure("recommender", settings)
    # By this checkout's own code: another one may write states otherwise.
    with redis.Redis.from_url(redis_url) as client:
        client.mset(dict(world.records(spec)))
    stages, clock_s = Stages(), 0.0

    def clock() -> float:
        return clock_s

    features = RedisFeatureStore(
        connect(redis_url, 5.0), spec, user_partitions=world.PARTITIONS, cache_ttl_s=0.5, cache_size=50_000, backoff_s=0.5, clock=clock
    )
    ranker = TritonRanker(triton, num_tasks=len(spec.task_names), timeout_s=5.0)
    index = ItemIndex(200)
    index.begin([])
    for item_id, names in world.categories().items():
        if hasattr(index, "_put"):
            index._put(CatalogItem(item_id=item_id, categories=names))
        else:
            index._categories[item_id] = names
    limits = RecallLimits(per_channel=60, total=150, seeds=5)
    # Where recall comes from; none is needed for named candidates.
    recall: dict[str, Any] = {"channels": []} if "channels" in inspect.signature(Recommender.__init__).parameters else {"nearest": None}
    core = Recommender(spec=spec, rules=Rules(), limits=limits, features=features, ranker=ranker, catalog=index, **recall)
    implementation = RecommenderServicer(core, spec, telemetry, max_candidates=500)
    stages.around(features, "read", "read")
    stages.around(ranker, "score", "score")
    stages.around(core, "recommend", "recommend")
    stages.around(implementation, "Recommend", "handler")
    inner = features.read

    async def read_later(*args: Any) -> Any:
        nonlocal clock_s
        clock_s += _REQUEST_EVERY_S
        return await inner(*args)

    features.read = read_later  # type: ignore[method-assign, assignment]  # counts the requests, and asks the store
    await _serve(grpc_servicer(implementation), settings, telemetry, stages)


class _NoKafka:
    """Takes the exposures' records, encoded, and keeps none."""

    def append(self, record: Any) -> None:
        self.num_bytes = len(record.value)


async def router(recommender_target: str) -> None:
    """Serve RouterService: everything but Generate's neighbours and Kafka itself is real."""
    settings = load_settings(RouterSettings)
    telemetry = configure("router", settings)
    core = make_router(
        settings, GrpcRecommender(recommender_target, max_message_bytes=1 << 22), Exposures(_NoKafka()), make_admission(settings)
    )
    generator = AnswerClients(settings).generator(settings, None, None)  # type: ignore[arg-type]  # never asked
    await _serve(servicer_of(core, generator, telemetry), settings, telemetry, Stages())


def main() -> None:
    """Serve the role that the command line names."""
    role, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(recommender(*rest) if role == "recommender" else router(*rest))


if __name__ == "__main__":
    main()
