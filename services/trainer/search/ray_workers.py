"""Runs trials on a Ray cluster (`RAY_ADDRESS`). Each worker reads the events itself, once; one that dies ends no other.

The trials stay in the database of the process that started the search: workers ask it over a queue. Ray is no part of the environment:
whoever has a cluster installs the cluster's version beside it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import Settings
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
        digest: of the events that were read where the search was started.
        sources: SHA-256 by path of the modules in use there.
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
        sources=sources_in_use(),
    )


def run_on_ray(address: str, order: Order, door: StudyDoor, jobs: int | None, *, tell: Callable[[str], None]) -> None:
    """Run trials on a cluster until as many as wanted are done, or the time is over.

    Args:
        address: of the cluster, as Ray takes it.
        order: for each worker.
        door: what answers them.
        jobs: how many workers; None: as many as the cluster has processors, and not more than trials.
        tell: is told of workers that ended.
    Raises:
        ConfigurationError: no Ray is installed, no cluster answers, or its workers cannot do this.
    """
    with _connected(address) as ray:
        processors = int(ray.cluster_resources().get("CPU", 0))
        number = min(jobs or processors, order.options.trials)
        if number < 1:
            raise ConfigurationError(f"RAY_ADDRESS={address}: the cluster has no processors")
        tell(f"Ray at {address}: {number} workers, {processors} processors")
        _Workers(ray, order, door, tell).run(number)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"RAY_ADDRESS={address}: Ray is not installed here; install the cluster's version beside the environment "
            "(`.venv/ml/bin/python -m pip install ray==VERSION`), or unset the variable"
        ) from error
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        # A wrong address is said at once, and in a line.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ConfigurationError(f"RAY_ADDRESS={address}: nothing answers there ({error})") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"RAY_ADDRESS={address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Workers:
    """The workers of one search."""

    def __init__(self, ray: Any, order: Order, door: StudyDoor, tell: Callable[[str], None]) -> None:
        self._ray, self._door, self._tell = ray, door, tell
        self._queues = importlib.import_module("ray.util.queue")
        self._calls = self._queue()
        self._order = ray.put(order)
        self._work = ray.remote(num_cpus=1, max_retries=0)(work_on_ray)
        self._numbers = itertools.count()
        self._answers: dict[int, Any] = {}
        self._running: dict[Any, int] = {}
        self._refusals: list[str] = []

    def _queue(self) -> Any:
        return self._queues.Queue(actor_options={"num_cpus": 0})

    def run(self, number: int) -> None:
        for _ in range(number):
            self._start()
        while self._running:
            self._answer_calls()
            for done in self._ray.wait(list(self._running), timeout=0)[0]:
                self._end(done)
            if self._door.is_late and not self._door.has_begun_trials:
                # Those that still wait for a processor, or read.
                for reference in self._running:
                    self._ray.cancel(reference, force=True)
                break
        if self._refusals and len(self._refusals) == len(self._answers):
            raise ConfigurationError(f"no worker on Ray can run trials: {self._refusals[0]}")

    def _start(self) -> None:
        number = next(self._numbers)
        self._answers[number] = self._queue()
        self._running[self._work.remote(self._order, number, self._calls, self._answers[number])] = number

    def _answer_calls(self) -> None:
        try:
            worker, name, arguments = self._calls.get(timeout=_POLL_S)
        except self._queues.Empty:
            return
        # A call of a worker that is gone is not answered: it would begin a trial that nobody runs.
        if worker in self._running.values():
            self._answers[worker].put(self._door.answer(worker, name, arguments))

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


def work_on_ray(order: Order, worker: int, calls: Any, answers: Any) -> None:
    """Run trials in a process of the cluster, until none is left or the time is over.

    Args:
        order: what to do.
        worker: the number of this one.
        calls: Ray's queue, of what is asked.
        answers: Ray's queue, of what is answered to this worker.
    Raises:
        ConfigurationError: files or program are others here.
    """

    def call(name: str, arguments: tuple[Any, ...]) -> Any:
        calls.put((worker, name, arguments))
        return answers.get()

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
    own = sources_in_use()
    changed = sorted(path for path in own.keys() & order.sources.keys() if own[path] != order.sources[path])
    if changed:
        raise ConfigurationError(f"{node} has another Tunemesh than where the search runs: {', '.join(changed[:3])} …")
    if digest_of(history) != order.digest:
        raise ConfigurationError(
            f"{node} reads other events from {order.options.data} than where the search runs; each node needs the same files"
        )
