"""Rows of peers: the same Recommend behind LitServe, BentoML and Ray Serve, 100 candidates, 16 at once, both sides in turn.

Here router, recommender and Triton with telemetry on and exposures encoded (not sent), over gRPC; there the peer's processes over HTTP and
JSON, without logs of requests. Before anything is measured, both must give the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench.row import NotHere, Options, Result, Row
from loadtests.bench_peers import http_loop
from loadtests.bench_peers.installed import BENTOML, LITSERVE, RAY, Peer, python_of, serving
from loadtests.bench_recommend_path import world
from loadtests.bench_recommend_path.__main__ import Tree
from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments

_CALLS, _AT_ONCE, _COMPARED = 640, 16, 20
_AS_FLOAT32 = 1e-5
_HOST = "127.0.0.1"
_ANSWER_S = 30.0


def _requests(peer: Peer, seed: int, count: int) -> list[bytes]:
    bodies = [{"user_id": user_id, "candidates": list(candidates)} for user_id, candidates in world.requests(seed, count)]
    return [http_loop.request(peer.path, _HOST, json.dumps(body).encode()) for body in bodies]


def _ask(port: int, requests: Sequence[bytes], at_once: int, check: Callable[[bytes], None]) -> None:
    asyncio.run(http_loop.run(_HOST, port, iter(requests), at_once=at_once, check=check))


def _is_ready(peer: Peer, port: int) -> bool:
    async def ask() -> None:
        async with asyncio.timeout(_ANSWER_S):
            await http_loop.run(_HOST, port, iter(_requests(peer, 0, 1)), at_once=1, check=_check)

    try:
        asyncio.run(ask())
    except (http_loop.CallFailed, OSError):  # a timeout is one
        return False
    return True


def _check(body: bytes) -> None:
    answer = json.loads(body)
    if len(answer["items"]) != world.NUM_CANDIDATES:
        raise http_loop.CallFailed(f"an answer is not whole: {len(answer['items'])} items")


def differences(ours: Sequence[tuple[str, float]], theirs: Sequence[tuple[str, float]]) -> str:
    """Return in which way two answers, (item id, score) best first, are not the same; empty when they are, to float32's precision."""
    if len(ours) != len(theirs):
        return f"{len(ours)} items and {len(theirs)}"
    scores = dict(theirs)
    if set(scores) != {item_id for item_id, _ in ours}:
        return "other items"
    worst = max((abs(score - scores[item_id]) for item_id, score in ours), default=0.0)
    return f"scores that are {worst:g} apart" if worst > _AS_FLOAT32 else ""


def _compare(tree: Tree, peer: Peer, port: int) -> None:
    theirs: list[Any] = []
    _ask(port, _requests(peer, 1, _COMPARED), 1, lambda body: theirs.append(json.loads(body)["items"]))
    for at, (answer, other) in enumerate(zip(tree.answers(1, _COMPARED), theirs, strict=True)):
        ours = [(item.item_id, item.score) for item in answer.items]
        if why := differences(ours, [(item["item_id"], item["score"]) for item in other]):
            raise RuntimeError(f"{peer.package} does another job: request {at} is answered with {why}")


def _round(peer: Peer, port: int, seed: int) -> tuple[float, float]:
    """Return whole answers a second, and the 99th percentile of their times in milliseconds; says what failed, which does not count.

    BentoML fails some by itself (findings/bentoml_depends_fails_at_once.sh).
    """
    requests, took_s, failed = _requests(peer, seed, _CALLS), list[float](), list[str]()
    began = time.perf_counter()
    try:
        asyncio.run(http_loop.run(_HOST, port, iter(requests), at_once=_AT_ONCE, check=_check, took_s=took_s, failed=failed))
    except http_loop.CallFailed as error:
        raise NotHere(f"{peer.package} is gone: {error}") from error
    took_all_s = time.perf_counter() - began
    if failed:
        print(f"{peer.package}: {len(failed)} of {_CALLS} requests failed, the first: {failed[0]}", flush=True)
    if len(failed) > _CALLS // 2:
        raise NotHere(f"{peer.package} fails under load: {failed[0]}")
    return (_CALLS - len(failed)) / took_all_s, float(np.percentile(took_s, 99)) * 1e3


def _own_round(tree: Tree, seed: int) -> tuple[float, float]:
    all_s, took_s = tree.timed(seed, _CALLS, _AT_ONCE)
    return _CALLS / all_s, float(np.percentile(took_s, 99)) * 1e3


def measure(peer: Peer, options: Options) -> Sequence[Result]:
    """Run both sides in turn; the first turn of each warms up."""
    environments = Environments.of_repository()
    try:
        python = python_of(peer, environments)
    except ConfigurationError as error:
        raise NotHere(str(error)) from error
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with contextlib.ExitStack() as running:
        redis_port = embedded.free_port()
        log = Path(running.enter_context(tempfile.TemporaryDirectory())) / "redis.log"
        command = embedded.redis_command(environments, port=redis_port)
        redis = embedded.EmbeddedServer(command, log=log, ready=lambda: embedded.redis_ready(redis_port))
        running.callback(redis.kill)
        url = f"redis://{_HOST}:{redis_port}/0"
        tree = Tree(running, environments, REPOSITORY_ROOT, redis, url, "")
        port = running.enter_context(serving(peer, python, url, partial(_is_ready, peer)))
        _compare(tree, peer, port)
        for seed in range(2, options.repeats + 3):
            ours.append(_own_round(tree, seed))
            theirs.append(_round(peer, port, seed))
    (rates, p99s), (peer_rates, peer_p99s) = (zip(*side[1:], strict=True) for side in (ours, theirs))
    name = f"recommend_{peer.name}"
    return (
        Result(name=name, unit="requests/s", ours=rates, peer=peer_rates, more_is_better=True),
        Result(name=f"{name}_p99_ms", unit="ms", ours=p99s, peer=peer_p99s),
    )


def _row(peer: Peer) -> Row:
    names = (f"recommend_{peer.name}", f"recommend_{peer.name}_p99_ms")
    return Row(f"Recommend, 100 candidates, closed loop of 16, beside {peer.package}", names, partial(measure, peer))


PEERS = tuple(map(_row, (LITSERVE, BENTOML, RAY)))
