"""Measure what a Recommend of 100 candidates costs in processor time:
`python -m loadtests.bench_recommend_path [--triton] [--against FOLDER]`.

Runs router and recommender as processes over real gRPC and a real Redis, and the ranking model's own code in the ml environment without a
tritonserver; Triton is a stand-in that answers at once, or with `--triton` the real one. With `--against`, another checkout's code runs in
turn with this one's (and, for Triton, its environments are used), be it from before services.common had rooms (older.py). Processor time is
that of all threads of a process (/proc/PID/task/*/schedstat), so a busy machine disturbs it less; requests a second are those of a closed
loop (closed_loop.py), and mean something beside the other checkout only. Medians of the rounds, with their spread.
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
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from loadtests.bench_recommend_path import closed_loop, world
from services.common.platform.grpc_client import open_channel
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments

_HERE = Path(__file__).parent
_AT_ONCE = 16
_PROCESSES = ("router", "recommender", "triton", "redis")
_STAGES = ("read", "score", "core", "answer", "gRPC")
_METHOD = "/tunemesh.router.v1.RouterService/Recommend"

REQUESTS_A_SECOND = f"requests/s, {_AT_ONCE} at once"


def seconds_of(pids: Iterable[int]) -> float:
    """Return the processor time of all threads of these processes so far."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def group_of(leader: int) -> list[int]:
    """Return the processes of a process group."""
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [pid for pid in pids if _group(pid) == leader]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


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
        # On a machine that is busy with other things a call may take longer than anybody would wait for it.
        env |= {"TUNEMESH_ROUTER_PORT": "0", "TUNEMESH_RECOMMENDER_PORT": "0", "TUNEMESH_ROUTER_MAX_DEADLINE_MS": "60000"}
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

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def _line(self) -> str:
        line = self._stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended without a word; what it wrote to stderr says why")
        return line

    def _end(self) -> None:
        self._stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            print(f"{self._process.args!r} ended with {self._process.returncode}", file=sys.stderr)


class Tree:
    """One checkout's processes."""

    def __init__(
        self,
        running: contextlib.ExitStack,
        environments: Environments,
        tree: Path,
        redis: embedded.EmbeddedServer,
        redis_url: str,
        triton: str,
    ) -> None:
        """`triton` is the stand-in's address; empty: this checkout's own model is served."""
        tables = running.enter_context(tempfile.TemporaryDirectory())
        self.scorer = Process(running, environments, tree, "ml", "scorer.py", tables)
        own = None if triton else _start_triton(running, tree, Path(tables))
        self.recommender = Process(running, environments, tree, "light", "worker.py", "recommender", redis_url, own[0] if own else triton)
        self.router = Process(running, environments, tree, "light", "worker.py", "router", f"127.0.0.1:{self.recommender.said}")
        self._port = int(self.router.said)
        self._pids = {"router": [self.router.pid], "recommender": [self.recommender.pid], "redis": [redis.pid]}
        self._pids["triton"] = group_of(own[1]) if own else []
        self._is_warm = False

    def round(self, seed: int, num_calls: int) -> dict[str, float]:
        """Make the calls, one after another and then several at once; return processor ms a call, or calls a second, by row."""
        calls = calls_of(seed, num_calls)
        if not self._is_warm:
            asyncio.run(self._until_ranked(calls[0]))
            self._is_warm = True
        self.recommender.ask("reset")
        rows, _ = self._seconds(calls, 1)
        stages = self.recommender.ask("stages")
        split = {name: stages[name] for name in ("read", "score")}
        split["core"] = stages["recommend"] - stages["read"] - stages["score"]
        split["answer"] = stages["handler"] - stages["recommend"]
        split["gRPC"] = rows["recommender, 1 at once"] - stages["handler"]
        rows |= {f"recommender: {name}": split[name] for name in _STAGES}
        at_once, took_s = self._seconds(calls, _AT_ONCE)
        result = {name: seconds / num_calls * 1e3 for name, seconds in (rows | at_once).items()}
        result[REQUESTS_A_SECOND] = num_calls / took_s
        return result | {"model.py, in process": self.scorer.ask(str(num_calls))["execute"] * 1e3}

    def timed(self, seed: int, num_calls: int, at_once: int = _AT_ONCE) -> tuple[float, list[float]]:
        """Make the calls, several at once; return how long all took, and each, in seconds."""
        calls = calls_of(seed, num_calls)
        took_s: list[float] = []
        started = time.perf_counter()
        self._closed(calls, at_once, _check, took_s)
        return time.perf_counter() - started, took_s

    def answers(self, seed: int, num_calls: int) -> list[router_service_pb2.RecommendResponse]:
        """Return whole answers, in the order of `world.requests`, once the ranker has opened its tables."""
        calls = calls_of(seed, num_calls)
        asyncio.run(self._until_ranked(calls[0]))
        found: list[router_service_pb2.RecommendResponse] = []
        self._closed(calls, 1, lambda raw: found.append(router_service_pb2.RecommendResponse.FromString(raw)))
        return found

    def _closed(
        self,
        calls: list[router_service_pb2.RecommendRequest],
        at_once: int,
        check: Callable[[bytes], None],
        took_s: list[float] | None = None,
    ) -> None:
        messages = iter([call.SerializeToString() for call in calls])
        asyncio.run(closed_loop.run("127.0.0.1", self._port, _METHOD, messages, at_once=at_once, check=check, took_s=took_s))

    def _seconds(self, calls: list[router_service_pb2.RecommendRequest], at_once: int) -> tuple[dict[str, float], float]:
        """Return what each process took for the calls, of which `at_once` run at any time, and their sum; and how long all took."""
        before = {name: seconds_of(self._pids[name]) for name in _PROCESSES}
        started = time.perf_counter()
        self._closed(calls, at_once, _check)
        took_s = time.perf_counter() - started
        took = {name: seconds_of(self._pids[name]) - before[name] for name in _PROCESSES}
        return {f"{name}, {at_once} at once": seconds for name, seconds in (took | {"all": sum(took.values())}).items()}, took_s

    async def _until_ranked(self, request: router_service_pb2.RecommendRequest) -> None:
        """Wait until the ranker has opened its tables."""
        async with open_channel(f"127.0.0.1:{self._port}") as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            while (await stub.Recommend(request, timeout=60)).degraded_reason == "ranker_unavailable":
                await asyncio.sleep(0.2)


def calls_of(seed: int, count: int) -> list[router_service_pb2.RecommendRequest]:
    """Return the requests of a round."""
    return [
        router_service_pb2.RecommendRequest(user_id=user_id, candidates=candidates) for user_id, candidates in world.requests(seed, count)
    ]


def _check(raw: bytes) -> None:
    answer = router_service_pb2.RecommendResponse.FromString(raw)
    if answer.degraded_reason or len(answer.items) != world.NUM_CANDIDATES:
        raise RuntimeError(f"an answer is not whole: {answer.degraded_reason}, {len(answer.items)} items")


def _start_triton(running: contextlib.ExitStack, tree: Path, tables: Path) -> tuple[str, int]:
    """Start a tritonserver with the checkout's model over the tables; return its address and the leader of its processes."""
    workspace = Path(running.enter_context(tempfile.TemporaryDirectory()))
    http_port, grpc_port = embedded.free_ports(2)
    env = {"TUNEMESH_TABLES_DIR": str(tables), "TUNEMESH_TELEMETRY_DIR": str(workspace), "OMP_NUM_THREADS": "1"}
    env["TUNEMESH_FEATURE_SPEC"] = str(tree / "model_repo" / "ranker" / "feature_spec.yaml")
    command = embedded.triton_command(
        Environments.of_repository(tree),
        http_port=http_port,
        grpc_port=grpc_port,
        workspace=workspace,
        repository=tree / "model_repo",
        env=env,
    )
    command = replace(command, cwd=tree)
    server = embedded.EmbeddedServer(command, log=workspace / "triton.log", ready=lambda: embedded.triton_ready(http_port), timeout_s=300)
    running.callback(embedded.remove_shared_memory, grpc_port)
    running.callback(server.kill)
    return f"127.0.0.1:{grpc_port}", server.pid


def measure(against: Path | None, *, triton: bool, rounds: int, calls: int) -> dict[str, list[dict[str, float]]]:
    """Return the rows of the table of every round, by checkout: "this", and "against" if there is one.

    Args:
        against: another checkout.
        triton: serve the model by a real tritonserver; the other checkout needs its own .venv for that.
        rounds: measured; one more warms up.
        calls: of each process in a round.
    """
    environments = Environments.of_repository()
    trees = {"this": REPOSITORY_ROOT} | ({"against": against.resolve()} if against else {})
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with contextlib.ExitStack() as running:
        port = embedded.free_ports(1)[0]
        log = Path(running.enter_context(tempfile.TemporaryDirectory())) / "redis.log"
        command = embedded.redis_command(environments, port=port)
        server = embedded.EmbeddedServer(command, log=log, ready=lambda: embedded.redis_ready(port))
        running.callback(server.kill)
        address = "" if triton else f"127.0.0.1:{Process(running, environments, REPOSITORY_ROOT, 'light', 'stand_in_triton.py').said}"
        urls = {name: f"redis://127.0.0.1:{port}/{database}" for database, name in enumerate(trees)}
        measured = {name: Tree(running, environments, tree, server, urls[name], address) for name, tree in trees.items()}
        for number in range(-1, rounds):
            for name, tree in measured.items():
                result = tree.round(number + 1, calls)
                if number >= 0:  # the first warms up
                    taken[name].append(result)
    return taken


def main() -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--triton", action="store_true", help="a real tritonserver; a checkout needs its own .venv for that")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200, help="of each process in a round")
    options = parser.parse_args()
    taken = measure(options.against, triton=options.triton, rounds=options.rounds, calls=options.calls)
    print(
        f"processor ms a Recommend of {world.NUM_CANDIDATES} candidates, median (min to max) of {options.rounds} rounds of {options.calls}"
    )
    for row in taken["this"][0]:
        columns = {name: [result[row] for result in rounds] for name, rounds in taken.items()}
        cells = [f"{name} {statistics.median(each):7.3f} ({min(each):.3f} to {max(each):.3f})" for name, each in columns.items()]
        if options.against and statistics.median(columns["this"]):
            cells.append(f"{statistics.median(columns['against']) / statistics.median(columns['this']):.2f}x")
        print(f"{row:24}", "   ".join(cells))


if __name__ == "__main__":
    main()
