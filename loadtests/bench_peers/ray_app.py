"""The job in two Ray Serve deployments, features and ranking, of one replica each.

Run by path in the peer's environment; argument: the port.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import ray  # type: ignore[import-not-found]  # of the peer's environment
from ray import serve
from starlette.requests import Request

from loadtests.bench_peers.job import MOST_TOGETHER, Ranker, Reader, answer, packed

# The machine's processors are shared by what runs there, as those of the mesh are: Ray's own book-keeping must not keep an actor waiting.
_ACTOR = {"num_cpus": 0}


class Rank:
    """Scores; calls that wait are taken together."""

    def __init__(self) -> None:
        self._ranker = Ranker()

    @serve.batch(max_batch_size=MOST_TOGETHER, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]  # of a package that is not there when types are checked
    async def score(self, calls: Sequence[Any]) -> list[Any]:
        """Return the scores of each call."""
        return list(self._ranker.scores([self._ranker.unpacked(call) for call in calls]))


class Recommend:
    """Reads states, makes features, and asks the other deployment."""

    def __init__(self, rank: Any) -> None:
        self._reader, self._rank = Reader(), rank

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer a request."""
        said = await request.json()
        asked = await self._reader.asked(said["user_id"], said["candidates"])
        scores_NT = await self._rank.score.remote(packed(self._reader.spec, asked))
        return answer(self._reader.spec, said["candidates"], scores_NT)


def main() -> None:
    """Serve until a signal comes."""
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False, _temp_dir=os.environ["BENCH_RAY"])
    http = {"host": "127.0.0.1", "port": int(sys.argv[1])}
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options=http, logging_config=quiet)
    deployed = serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options=_ACTOR)
    serve.run(deployed(Recommend).bind(deployed(Rank).bind()), route_prefix="/", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
