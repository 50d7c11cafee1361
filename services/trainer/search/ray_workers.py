"""Runs trials on a Ray cluster (`RAY_ADDRESS`). Each worker reads the events itself, once; one that dies ends no other.

The trials stay in the database of the process that started the search: workers ask it through an actor beside it. Ray is no part of the
environment: whoever has a cluster installs the cluster's version beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import inspect
import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.platform.settings import Settings
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import OwnNetworkSpec
from services.common.ranker.networks.registry import make_network
from services.trainer.event_files.history import History
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.search.given import with_events
from services.trainer.search.measure import Objective
from services.trainer.search.remote import SECONDS_LEFT, TELL, RemoteStudy, StudyDoor
from services.trainer.search.space import Space
from services.trainer.search.trials import Limits, Runner
from services.trainer.train import digest_of, sources_in_use

_CONNECT_S = 5.0
_POLL_S = 0.2
_MAX_CALLS = 10_000
"""Of all workers at once: each waits for its answer."""


class RaySettings(Settings):
    """For processes that may work on a Ray cluster."""

    ray_address: str | None = Field(None, validation_alias="RAY_ADDRESS")
    """Where the cluster is, as Ray takes it: host:port, auto, ray://host:port; unset: work is done on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker is to do.

    Attributes:
        options: of the command.
        folder: what relative names of files begin at.
        space: what is searched.
        objective: what is made of a trial's measures.
        digest: of the events that were read where the search runs.
        sources: SHA-256 by path of the modules in use there, versions of libraries, and the file of a network of one's own.
    """

    options: argparse.Namespace
    folder: str
    space: Space
    objective: Objective
    digest: str
    sources: dict[str, str]


def order_for(options: argparse.Namespace, space: Space, objective: Objective, history: History) -> Order:
    """Return what workers are told."""
    return Order(
        options=options,
        folder=str(Path.cwd()),
        space=space,
        objective=objective,
        digest=digest_of(history),
        sources=program_of(space.start),
    )


def program_of(spec: FeatureSpec) -> dict[str, str]:
    """Return what decides, beside events and values, what a trial is worth: SHA-256 of modules in use by path, and versions of libraries.

    Raises:
        ConfigurationError: a network of one's own cannot be made here.
    """
    found = {"torch": torch.__version__, "numpy": np.__version__}
    if isinstance(spec.network, OwnNetworkSpec):
        # It is imported when it is made, from beside the spec.
        file = inspect.getsourcefile(type(make_network(spec)))
        found["network.module"] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "?"
    return found | sources_in_use()


def check_cluster(address: str) -> None:
    """Find out whether there could be trials on a cluster, before the work that comes before them.

    Raises:
        ConfigurationError: nothing answers at the address, or Ray is not installed here.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ConfigurationError(f"RAY_ADDRESS={address}: nothing answers there ({error})") from error
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"RAY_ADDRESS={address}: Ray is not installed here; install the cluster's version beside the environment "
            "(`.venv/ml/bin/python -m pip install ray==VERSION`), or unset the variable"
        ) from error


def run_on_ray(address: str, order: Order, door: StudyDoor, jobs: int | None, *, tell: Callable[[str], None]) -> None:
    """Run trials on a cluster until as many as wanted are done, or the time is over.

    Args:
        address: of the cluster, as Ray takes it.
        order: for each worker.
        door: what answers them.
        jobs: how many workers; None: as many as the cluster has processors, and not more than trials.
        tell: is told of workers that ended.
    Raises:
        ConfigurationError: no cluster lets this process in, or its workers cannot do this.
        Unavailable: the cluster is gone in the middle.
    """
    ray = importlib.import_module("ray")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"RAY_ADDRESS={address}: {error} (host:port and auto are for a machine of the cluster; from another it is ray://host:10001. "
            "A cluster that asks for a token is joined with RAY_AUTH_MODE=token)"
        ) from error
    try:
        processors = int(ray.cluster_resources().get("CPU", 0))
        if processors < 1:
            raise ConfigurationError(f"RAY_ADDRESS={address}: the cluster has no processors")
        number = min(jobs or processors, order.options.trials)
        tell(f"Ray at {address}: {number} workers, {processors} processors")
        _Workers(ray, order, door, tell).run(number)
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise Unavailable(f"RAY_ADDRESS={address}: the cluster is gone ({error}); the same command goes on where it ended") from error
    finally:
        ray.shutdown()


class _Desk:
    """Where calls of workers wait for their answers: an actor beside the process that has the study."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[tuple[int, str, tuple[Any, ...]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, worker: int, name: str, arguments: tuple[Any, ...]) -> Any:
        answer = self._answers[worker] = asyncio.get_running_loop().create_future()
        await self._calls.put((worker, name, arguments))
        return await answer

    async def next_call(self, wait_s: float) -> tuple[int, str, tuple[Any, ...]] | None:
        try:
            return await asyncio.wait_for(self._calls.get(), wait_s)
        except TimeoutError:
            return None

    async def answer(self, worker: int, value: Any) -> None:
        future = self._answers.pop(worker)
        if not future.done():  # whoever asked is gone
            future.set_result(value)


class _Workers:
    """The workers of one search."""

    def __init__(self, ray: Any, order: Order, door: StudyDoor, tell: Callable[[str], None]) -> None:
        self._ray, self._door, self._tell = ray, door, tell
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        # A machine of the cluster that is gone must not take the calls of all others with it.
        here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._desk = ray.remote(_Desk).options(num_cpus=0, max_concurrency=_MAX_CALLS, scheduling_strategy=here).remote()
        self._order = ray.put(order)
        self._work = ray.remote(num_cpus=1, max_retries=0)(work_on_ray)
        self._numbers = itertools.count()
        self._running: dict[Any, int] = {}
        self._asked: set[int] = set()
        self._refusals: list[str] = []

    def run(self, number: int) -> None:
        for _ in range(number):
            self._start()
        # One that has asked is told that there is nothing left, and ends by itself, its last line said.
        while self._running and not (self._door.is_done and self._asked.isdisjoint(self._running.values())):
            self._answer_calls()
            for done in self._ray.wait(list(self._running), timeout=0)[0]:
                self._end(done)
        for reference in self._running:
            # They read, or wait for a processor that others have.
            self._ray.cancel(reference, force=True)
        if self._refusals and len(self._refusals) == next(self._numbers):
            raise ConfigurationError(f"no worker on Ray can run trials: {self._refusals[0]}")

    def _start(self) -> None:
        number = next(self._numbers)
        self._running[self._work.remote(self._order, number, self._desk)] = number

    def _answer_calls(self) -> None:
        call = self._ray.get(self._desk.next_call.remote(_POLL_S))
        # A call of a worker that is gone is not answered: it would begin a trial that nobody runs.
        if call is not None and call[0] in self._running.values():
            self._asked.add(call[0])
            self._ray.get(self._desk.answer.remote(call[0], self._door.answer(*call)))

    def _end(self, reference: Any) -> None:
        worker = self._running.pop(reference)
        exceptions = self._ray.exceptions
        try:
            self._ray.get(reference)
        except exceptions.RayTaskError as error:
            # It ran, and said why it cannot go on: the next one would say the same.
            self._refusals.append(str(error.cause))
            self._tell(f"worker {worker} on Ray ended: {error.cause}")
            self._door.end_of_worker(worker, type(error.cause).__name__)
        except exceptions.RayError as error:
            closed = self._door.end_of_worker(worker, type(error).__name__)
            again = f"; trial {closed} is tried once more, or has failed" if closed is not None else ""
            self._tell(f"worker {worker} on Ray ended with {type(error).__name__}{again}")
            if closed is not None and not self._door.is_late:
                self._start()


def work_on_ray(order: Order, worker: int, desk: Any) -> None:
    """Run trials in a process of the cluster, until none is left or the time is over.

    Args:
        order: what to do.
        worker: the number of this one.
        desk: Ray's handle of the actor that takes calls.
    Raises:
        ConfigurationError: files or program are others here.
    """
    ray = importlib.import_module("ray")

    def call(name: str, arguments: tuple[Any, ...]) -> Any:
        return ray.get(desk.ask.remote(worker, name, arguments))

    torch.set_num_threads(1)
    if Path(order.folder).is_dir():
        os.chdir(order.folder)
    work = WorkFolder()
    try:
        given = with_events(order.options, order.space, work, say=lambda _: None)
        check_same(order, given.history)
        runner = Runner(
            study=RemoteStudy(order.space, call),
            parts=given.parts.trials,
            config=given.config,
            objective=order.objective,
            tell=lambda line: call(TELL, (line,)),
        )
        left = call(SECONDS_LEFT, ())
        runner.run(Limits(trials=order.options.trials, deadline=None if left is None else runner.clock() + left))
    finally:
        work.close()


def check_same(order: Order, history: History) -> None:
    """Refuse a node whose trials would be worth something else, and would be compared all the same.

    Raises:
        ConfigurationError: the program, or the events that were read, are others than where the search runs.
    """
    node = socket.gethostname()
    own = program_of(order.space.start)
    changed = sorted(path for path in own.keys() & order.sources.keys() if own[path] != order.sources[path])
    if changed:
        raise ConfigurationError(f"{node} has another Tunemesh than where the search runs: {', '.join(changed[:3])} …")
    if digest_of(history) != order.digest:
        raise ConfigurationError(
            f"{node} reads other events from {order.options.data} than where the search runs; each node needs the same files"
        )
