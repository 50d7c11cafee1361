"""A mesh of one's own for soak and fault tests: MovieLens' catalogue, and no base, so that the ranker learns from the load alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loadtests.demo.catalogue import write_catalogue
from loadtests.movielens import Film, load_films
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import load_settings
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.settings import MeshSettings
from tunemesh_client import Client, RetryPolicy, TunemeshError

RANKING = ("kafka", "redis", "triton", "trainer", "updater", "recommender", "router", "feedback_collector", "joiner", "features")

# Windows are short, so that what was sent is learned soon after the load has ended. And a machine that runs everything at once, with a
# language model on its CPU, may be slow for a moment: better a late answer than one without the ranker.
_ENV = {
    "TUNEMESH_RECOMMENDER_REDIS_TIMEOUT_MS": "500",
    "TUNEMESH_RECOMMENDER_TRITON_TIMEOUT_MS": "1500",
    "TUNEMESH_JOINER_WINDOW_MS": "2000",
    "TUNEMESH_JOINER_LATE_HORIZON_MS": "120000",
    "TUNEMESH_ROUTER_FLUSH_INTERVAL_MS": "100",
    "TUNEMESH_TRAINER_ON_LINEAGE_CHANGE": "adopt",
    "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "0.01",
    "TUNEMESH_MODELS_DIR": str(REPOSITORY_ROOT / "build" / "models"),  # made once
}


@contextmanager
def bare_mesh(
    folder: Path,
    *,
    services: tuple[str, ...] = (),
    durable_broker: bool,
    films: Mapping[str, Film] | None = None,
    env: Mapping[str, str] | None = None,
    limit_s: float = 300.0,
) -> Iterator[Mesh]:
    """Start a mesh on free ports in `folder`, fill its catalogue, and yield it when its answers are whole; stop it at the end.

    It begins empty: what an earlier one left in the folder's volumes, a durable broker's log say, is deleted.

    Args:
        folder: of its state, logs, volumes and telemetry.
        services: only these and what they depend on; all by default.
        durable_broker: Apache Kafka from KAFKA_HOME in place of the broker in memory.
        films: its catalogue, by id; all of MovieLens by default.
        env: variables over those of this process.
        limit_s: the longest that the start may take, and after it the first whole answer.
    Raises:
        ConfigurationError: it did not start or did not become ready. One line.
    """
    broker = "kafka" if durable_broker else "tansu"
    settings = load_settings(MeshSettings).model_copy(update={"broker": broker, "start_timeout_ms": round(1000 * limit_s)})
    own = {name: os.environ.get(name) or value for name, value in _ENV.items()} | {"TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry")}
    with Mesh(env=own | dict(env or {}), run_dir=folder / "mesh", services=services, free_ports=True, settings=settings) as mesh:
        if not mesh.folder.is_up():
            shutil.rmtree(mesh.folder.path / "volumes", ignore_errors=True)
        mesh.up()
        films = load_films() if films is None else films
        asyncio.run(write_catalogue(mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"], films.values()))
        _wait_ready(mesh, list(films)[:20], limit_s)
        yield mesh


def _wait_ready(mesh: Mesh, candidates: list[str], limit_s: float) -> None:
    """Until a recommendation, and then an answer where there is a model, is whole."""
    deadline = time.monotonic() + limit_s
    with Client(mesh.address("router"), retry=RetryPolicy(retries=0)) as client:

        def recommend() -> str:
            return client.recommend("nobody", candidates).degraded_reason

        def generate() -> str:
            with client.generate("nobody", "What is Toy Story?", retrieve=True) as stream:
                next(stream, None)
                return stream.degraded_reason

        for ask in (recommend, generate) if "llm" in mesh.services() else (recommend,):
            while reason := _what_is_missing(ask):
                if time.monotonic() > deadline:
                    raise ConfigurationError(f"the mesh did not become ready within {limit_s:.0f} s: {reason} (logs: {mesh.folder.logs})")
                time.sleep(0.5)


def _what_is_missing(ask: Callable[[], str]) -> str:
    """Return why an answer is not whole, or why there is none; empty when it is whole."""
    try:
        return ask()
    except TunemeshError as error:
        return f"{error.status}: {error.details}"
