"""Three times as many Recommends as the mesh can answer: how much of its best is left, and how soon the others hear that they are refused.

The peer is the same router without its adaptive limit, in front of the same recommender. Both take turns: 64 callers that wait for their
answers say through the peer what the mesh can do, then callers that wait for nobody (Poisson) ask three times as often, with half a second
of time each.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from loadtests.bare_mesh import RANKING, bare_mesh
from loadtests.bench.row import Options, Result, Row
from loadtests.movielens import load_films
from services.common.platform.grpc_client import open_channel
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.mesh import Mesh

_CALLERS, _TIMES, _CANDIDATES = 64, 3.0, 100
_CLOSED_S, _OPEN_S, _BUDGET_S = 5.0, 8.0, 0.5
_NO_LIMIT = {"TUNEMESH_ROUTER_LEAST_CONCURRENT": "1000000", "TUNEMESH_ROUTER_MOST_CONCURRENT": "1000000"}
_START_S = 120.0
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Heard:
    """What callers heard."""

    whole: int = 0
    """Answers with nothing missing, in time."""
    degraded: int = 0
    late: int = 0
    """Calls whose time was over."""
    refused_ms: list[float] = field(default_factory=list)
    """How long each refusal took."""
    failed: int = 0


class Callers:
    """Ask one router."""

    def __init__(self, address: str, seed: int) -> None:
        """Connects lazily, on the running event loop."""
        self._channel = open_channel(address, max_message_bytes=_MAX_MESSAGE_BYTES)
        self._stub = router_service_pb2_grpc.RouterServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._draw = random.Random(seed)
        self._films = list(load_films())

    async def ask(self, heard: Heard) -> None:
        """Ask once, as anybody, about a hundred items."""
        request = router_service_pb2.RecommendRequest(
            user_id=str(self._draw.randrange(10_000)), candidates=self._draw.sample(self._films, _CANDIDATES)
        )
        began = time.perf_counter()
        try:
            answer = await self._stub.Recommend(request, timeout=_BUDGET_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                heard.refused_ms.append((time.perf_counter() - began) * 1e3)
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                heard.late += 1
            else:
                heard.failed += 1
            return
        heard.degraded += bool(answer.degraded_reason)
        heard.whole += not answer.degraded_reason

    async def closed(self, seconds: float) -> float:
        """Return the whole answers a second that callers get who wait for theirs."""
        heard, until = Heard(), time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < until:
                await self.ask(heard)

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        return heard.whole / seconds

    async def open(self, rate: float, seconds: float) -> Heard:
        """Ask so often, whatever the others heard so far."""
        heard, calls = Heard(), set[asyncio.Task[None]]()
        at, until = time.perf_counter(), time.perf_counter() + seconds
        while at < until:
            await asyncio.sleep(max(at - time.perf_counter(), 0.0))
            call = asyncio.ensure_future(self.ask(heard))
            calls.add(call)
            call.add_done_callback(calls.discard)
            at += self._draw.expovariate(rate)
        await asyncio.gather(*calls)
        return heard

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


@contextmanager
def _router_without_limit(mesh: Mesh, folder: Path) -> Iterator[str]:
    """Start a second router before the mesh's recommender, and yield its address."""
    log = folder / "router-without-limit.log"
    env = os.environ | mesh.environment("router") | _NO_LIMIT
    env |= {"TUNEMESH_ROUTER_PORT": "0", "TUNEMESH_ROUTER_SPOOL_DIR": str(folder / "spool"), "PYTHONPATH": f"{REPOSITORY_ROOT}/protos/gen"}
    python = str(Environments.of_repository().python("light"))
    with log.open("wb") as output:
        process = subprocess.Popen([python, "-m", "services.router"], env=env, cwd=REPOSITORY_ROOT, stdout=output, stderr=output)
    try:
        until = time.monotonic() + _START_S
        while (ready := re.search(r"READY router \S+:(\d+)$", log.read_text(encoding="utf-8"), flags=re.MULTILINE)) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the second router did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        yield f"127.0.0.1:{ready[1]}"
    finally:
        process.terminate()
        process.wait()


async def _best(address: str, seed: int) -> float:
    callers = Callers(address, seed)
    best = await callers.closed(_CLOSED_S)
    await callers.close()
    return best


async def _overload(name: str, address: str, best: float, seed: int) -> Heard:
    """Ask three times as often as `best`, and return what callers heard."""
    callers = Callers(address, seed)
    heard = await callers.open(_TIMES * best, _OPEN_S)
    await callers.close()
    print(
        f"{name}: best {best:.0f} whole answers a second; asked {_TIMES * best:.0f} times a second: whole {heard.whole / _OPEN_S:.0f}, "
        f"degraded {heard.degraded / _OPEN_S:.1f}, late {heard.late / _OPEN_S:.0f}, refused {len(heard.refused_ms) / _OPEN_S:.0f}, "
        f"failed {heard.failed / _OPEN_S:.1f}",
        flush=True,
    )
    return heard


def measure(options: Options) -> Sequence[Result]:
    """Run both sides in turn."""
    ours: list[float] = []
    peer: list[float] = []
    rejections: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunemesh-overload-")))
        mesh = stack.enter_context(bare_mesh(folder, services=RANKING, durable_broker=False))
        without = stack.enter_context(_router_without_limit(mesh, folder))
        asyncio.run(_best(without, 0))  # to warm up
        for number in range(options.repeats):
            best = asyncio.run(_best(without, number))
            heard = asyncio.run(_overload("with the limit", mesh.address("router"), best, number))
            ours.append(heard.whole / _OPEN_S / best)
            rejections.append(float(np.percentile(heard.refused_ms, 99)) if heard.refused_ms else 0.0)
            peer.append(asyncio.run(_overload("without", without, best, number)).whole / _OPEN_S / best)
    return (
        Result(name="overload_goodput", unit="share of the best", ours=ours, peer=peer, more_is_better=True),
        Result(name="overload_rejection_p99_ms", unit="ms", ours=rejections),
    )


OVERLOAD = Row("Recommend at three times what the mesh can answer", ("overload_goodput", "overload_rejection_p99_ms"), measure)
