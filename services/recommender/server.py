"""The recommender's wiring: from the settings to what reaches the world, the core and the servicer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import yaml
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc

from services.common.events.dead_letter_writer import dead_letter_writer
from services.common.events.topics import CATALOG
from services.common.platform.errors import ConfigurationError
from services.common.platform.grpc_server import GrpcServer, Servicer, serve
from services.common.platform.settings import REDIS_URL_FORM, redacted, variable_of
from services.common.platform.telemetry import configure
from services.common.platform.topic_follower import TopicFollower
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.tables.reader import ModelReader
from services.common.ranker.tables.warm_up import warm_up_tables
from services.recommender.catalog import ItemIndex
from services.recommender.channels.registry import recall_channels
from services.recommender.core import RecallLimits, Recommender
from services.recommender.nearest import EmbeddingRecall
from services.recommender.redis_features import RedisFeatureStore, connect
from services.recommender.rules import Rules
from services.recommender.servicer import RecommenderServicer
from services.recommender.settings import RecommenderSettings
from services.recommender.sources import Sources
from services.recommender.triton_ranker import TritonRanker

_log = logging.getLogger(__name__)


def load_rules(path: Path) -> Rules:
    """Read the business rules.

    Raises:
        ConfigurationError: the file is missing, is not YAML or breaks a rule.
    """
    try:
        return Rules.parse(yaml.safe_load(path.read_text(encoding="utf-8")), source=str(path))
    except OSError as error:
        variable = variable_of(RecommenderSettings, "rules_path")
        raise ConfigurationError(f"rules {path}: cannot be read ({error.strerror}): set {variable}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"rules {path}: not YAML: {' '.join(str(error).split())}") from error


def connect_features(settings: RecommenderSettings, spec: FeatureSpec) -> RedisFeatureStore:
    """Return the store; it connects with the first call.

    Raises:
        ConfigurationError: the URL is malformed.
    """
    try:
        client = connect(settings.redis_url.get_secret_value(), settings.redis_timeout_ms / 1e3)
    except ValueError as error:
        raise ConfigurationError(f"{variable_of(settings, 'redis_url')}={settings.redis_url}: {REDIS_URL_FORM}") from error
    return RedisFeatureStore(
        client,
        spec,
        user_partitions=settings.user_partitions,
        cache_ttl_s=settings.item_cache_ttl_ms / 1e3,
        cache_size=settings.item_cache_size,
        backoff_s=settings.redis_backoff_ms / 1e3,
    )


def embedding_recall(settings: RecommenderSettings, spec: FeatureSpec, index: ItemIndex) -> EmbeddingRecall:
    """Return nearest-neighbour recall over this host's mapped tables, restricted to the catalogue's items."""
    return EmbeddingRecall(
        lambda: ModelReader(settings.tables_dir, spec.schema_hash),
        index,
        num_reserved_dims=spec.num_reserved_dims,
        refresh_s=settings.neighbours_refresh_ms / 1e3,
    )


def grpc_servicer(implementation: RecommenderServicer) -> Servicer:
    """Return what the gRPC server needs to know of the service."""
    return Servicer(
        descriptor=recommender_service_pb2.DESCRIPTOR.services_by_name["RecommenderService"],
        implementation=implementation,
        register=recommender_service_pb2_grpc.add_RecommenderServiceServicer_to_server,
        merged=("RecommendMany",),
    )


async def get_ready(server: GrpcServer, follower: TopicFollower, catalog_wait_ms: int) -> None:
    """Say that the server serves: with its compiled code ready, and with the catalogue, if that is read in time."""
    await asyncio.to_thread(warm_up_tables)
    if not await asyncio.to_thread(follower.wait_ready, catalog_wait_ms / 1e3):
        _log.warning("the catalogue was not read in %d ms: answers say catalog_unavailable until it is", catalog_wait_ms)
    await server.set_serving(True)


async def run(settings: RecommenderSettings) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: a file, a URL or the port is wrong.
    """
    spec = FeatureSpec.load(settings.feature_spec_path)
    rules = load_rules(settings.rules_path)
    telemetry = configure("recommender", settings)
    _log.info("settings: %s", redacted(settings))
    letters = dead_letter_writer(
        settings.kafka_bootstrap_servers, CATALOG, source="/tunemesh/recommender", compression=settings.kafka_compression
    )
    index = ItemIndex(settings.cold_start_pool, on_refused=letters.set_aside, plan=spec.plan)
    follower = TopicFollower(settings.kafka_bootstrap_servers, CATALOG.name, index, client_id="recommender")
    features = connect_features(settings, spec)
    ranker = TritonRanker(settings.triton_url, num_tasks=len(spec.task_names), timeout_s=settings.triton_timeout_ms / 1e3)
    nearest = embedding_recall(settings, spec, index)
    limits = RecallLimits(per_channel=settings.recall_per_channel, total=settings.recall_total, seeds=settings.recall_seeds)
    channels = recall_channels(Sources(features=features, catalog=index, nearest=nearest, limits=limits))
    recommender = Recommender(spec=spec, rules=rules, limits=limits, features=features, ranker=ranker, catalog=index, channels=channels)
    implementation = RecommenderServicer(recommender, spec, telemetry, max_candidates=settings.max_candidates)

    async def background(server: GrpcServer) -> None:
        follower.start()
        await get_ready(server, follower, settings.catalog_wait_ms)
        await nearest.run()

    async def close() -> None:
        await asyncio.to_thread(follower.stop)
        await asyncio.to_thread(letters.close)
        await features.close()
        await ranker.close()

    await serve([grpc_servicer(implementation)], settings, telemetry, on_drain=close, main=background, serving=False)
