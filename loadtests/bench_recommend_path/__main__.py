"""Measure what a Recommend of 100 candidates costs in processor time: `python -m loadtests.bench_recommend_path [--against FOLDER]`.

Runs router and recommender as processes over real gRPC and a real Redis, with a stand-in for Triton, and the ranking model's own code in
the ml environment without a tritonserver. With `--against`, another checkout's code runs in turn with this one's. Only processor time is
taken (all threads of a process, from /proc/PID/task/*/schedstat), so a busy machine disturbs
little. Medians of the rounds, with their spread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Literal

import redis
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from loadtests.bench_recommend_path import world
from services.common.platform.grpc_client import open_channel
from services.common.ranker.feature_spec import FeatureSpec
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments

_HERE = Path(__file__).parent
_AT_ONCE = 16
_STAGES = ("read", "score", "core", "answer", "gRPC")
_ROWS = (*(f"{name}, {calls} at once" for name in ("router", "recommender") for calls in (1, _AT_ONCE)), *_STAGES, "ranker model")


class Process:
    """A child that prints one line when it is ready, and then answers lines."""

    def __init__(
        self,
        running: contextlib.ExitStack,
        environments: Environments,
        tree: Path,
        environment: Literal["light", "ml"],
        script: str,
        *words: str,
    ) -> None:
        env = dict(os.environ, PYTHONPATH=f"{tree}:{tree / 'protos' / 'gen'}", OMP_NUM_THREADS="1")
        env |= {"TUNEMESH_ROUTER_PORT": "0", "TUNEMESH_RECOMMENDER_PORT": "0"}
        env["TUNEMESH_TELEMETRY_DIR"] = running.enter_context(tempfile.TemporaryDirectory())
        command = [str(environments.python(environment)), str(_HERE / script), *words]
        self._process = subprocess.Popen(command, cwd=tree, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.callback(self._end)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout
        self.said = self._line()

    def ask(self, line: str) -> dict[str, float]:
        """Return its answer to a line."""
        print(line, file=self._stdin, flush=True)
        return dict(json.loads(self._line()))

    def seconds(self) -> float:
        """Return the processor time of all its threads so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def _line(self) -> str:
        line = self._stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended without a word; what it wrote to stderr says why")
        return line

    def _end(self) -> None:
        self._stdin.close()
        if self._process.wait(timeout=60) != 0:
            print(f"{self._process.args!r} ended with {self._process.returncode}", file=sys.stderr)


class Tree:
    """One checkout's processes."""

    def __init__(self, running: contextlib.ExitStack, environments: Environments, tree: Path, redis_url: str, triton: str) -> None:
        self.recommender = Process(running, environments, tree, "light", "worker.py", "recommender", redis_url, triton)
        self.router = Process(running, environments, tree, "light", "worker.py", "router", f"127.0.0.1:{self.recommender.said}")
        self._target = f"127.0.0.1:{self.router.said}"
        self.scorer = Process(running, environments, tree, "ml", "scorer.py", running.enter_context(tempfile.TemporaryDirectory()))

    def round(self, seed: int, num_calls: int) -> dict[str, float]:
        """Make the calls, one after another and then several at once; return processor ms a call by row of the table."""
        calls = [
            router_service_pb2.RecommendRequest(user_id=user_id, candidates=candidates)
            for user_id, candidates in world.requests(seed, num_calls)
        ]
        self.recommender.ask("reset")
        router, recommender = self._seconds(calls, 1)
        stages = self.recommender.ask("stages")
        core = stages["recommend"] - stages["read"] - stages["score"]
        split = (stages["read"], stages["score"], core, stages["handler"] - stages["recommend"], recommender - stages["handler"])
        router_at_once, recommender_at_once = self._seconds(calls, _AT_ONCE)
        whole = (router, router_at_once, recommender, recommender_at_once, *split)
        each = [seconds / num_calls * 1e3 for seconds in whole]
        return dict(zip(_ROWS, [*each, self.scorer.ask(str(num_calls))["execute"] * 1e3], strict=True))

    def _seconds(self, calls: list[router_service_pb2.RecommendRequest], at_once: int) -> tuple[float, float]:
        """Return what router and recommender took for the calls, of which `at_once` run at any time."""
        before = self.router.seconds(), self.recommender.seconds()
        asyncio.run(self._call(calls, at_once))
        return self.router.seconds() - before[0], self.recommender.seconds() - before[1]

    async def _call(self, calls: list[router_service_pb2.RecommendRequest], at_once: int) -> None:
        waiting = iter(calls)
        async with open_channel(self._target, max_message_bytes=1 << 22) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated

            async def caller() -> None:
                for request in waiting:
                    answer = await stub.Recommend(request, timeout=60)
                    if answer.degraded_reason or len(answer.items) != world.NUM_CANDIDATES:
                        raise RuntimeError(f"an answer is not whole: {answer.degraded_reason}, {len(answer.items)} items")

            await asyncio.gather(*(caller() for _ in range(at_once)))


def main() -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200, help="of each process in a round")
    options = parser.parse_args()
    environments = Environments.of_repository()
    spec = FeatureSpec.load(REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml")
    trees = {"this": REPOSITORY_ROOT} | ({"against": options.against.resolve()} if options.against else {})
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with contextlib.ExitStack() as running:
        port = embedded.free_ports(1)[0]
        log = Path(running.enter_context(tempfile.TemporaryDirectory())) / "redis.log"
        command = embedded.redis_command(environments, port=port)
        server = embedded.EmbeddedServer(command, log=log, ready=lambda: embedded.redis_ready(port))
        running.callback(server.kill)
        redis_url = f"redis://127.0.0.1:{port}/0"
        redis.Redis.from_url(redis_url).mset(dict(world.records(spec)))
        triton = Process(running, environments, REPOSITORY_ROOT, "light", "stand_in_triton.py")
        measured = {name: Tree(running, environments, tree, redis_url, f"127.0.0.1:{triton.said}") for name, tree in trees.items()}
        for number in range(-1, options.rounds):
            for name, tree in measured.items():
                result = tree.round(number + 1, options.calls)
                if number >= 0:  # the first warms up
                    taken[name].append(result)
    print(
        f"processor ms a Recommend of {world.NUM_CANDIDATES} candidates, median (min to max) of {options.rounds} rounds of {options.calls}"
    )
    for row in _ROWS:
        columns = {name: [result[row] for result in rounds] for name, rounds in taken.items()}
        cells = [f"{name} {statistics.median(ms):6.3f} ({min(ms):.3f} to {max(ms):.3f})" for name, ms in columns.items()]
        if options.against:
            cells.append(f"{statistics.median(columns['against']) / statistics.median(columns['this']):.2f}x")
        print(f"{row:24}", "   ".join(cells))


if __name__ == "__main__":
    main()
