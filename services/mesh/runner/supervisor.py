"""Keeps the processes of one mesh running: `python -m services.mesh supervise`, started by `up`.

Starts the services in dependency order and stops them in reverse order on SIGTERM; `supervised` keeps each of them running in between.
Writes `state.json`; on SIGHUP it also starts the services that `start.json` names. Ends by itself when its owner (a demo or test) is gone.
Knows nothing about what the services do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError
from services.mesh.runner.plan import Process
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.settings import MeshSettings
from services.mesh.runner.state import ANSWERING, MeshState, ProcessId
from services.mesh.runner.supervised import Supervised

_FEATURE_SPEC = "TUNEMESH_FEATURE_SPEC"
_log = logging.getLogger("mesh")

Names = tuple[str, ...]
Plan = Callable[[Names], Sequence[Process]]


class Supervisor:
    """All processes of one mesh."""

    def __init__(self, plan: Plan, names: Names, folder: RunFolder, settings: MeshSettings, *, owner: ProcessId | None = None) -> None:
        """`plan` gives the processes of services in start order; with an `owner`, the mesh ends when that process does.

        Raises:
            ConfigurationError: from `plan`.
        """
        self._plan, self._folder, self._settings, self._owner = plan, folder, settings, owner
        self._state = MeshState(supervisor_pid=os.getpid(), started_ms=wall_ms())
        self._changed = asyncio.Event()
        self._all: dict[str, Supervised] = {}
        self._add(plan(names))
        self._tasks: list[asyncio.Task[None]] = []
        self._signals = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run the mesh until it is told to stop; return the exit code (1: the start failed)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_request)
        self._publish()
        self._run(self._all)
        self._tasks.append(asyncio.create_task(self._start_up()))
        if self._owner is not None:
            self._tasks.append(asyncio.create_task(self._owner_gone(self._owner)))
        await self._stop.wait()
        self._state.phase = "stopping"
        self._publish()
        await self._stop_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._state.phase = "failed" if self._state.message else "down"
        self._publish()
        return 1 if self._state.message else 0

    def _add(self, processes: Sequence[Process]) -> list[str]:
        """Take up the processes that are not here yet, or have ended for good; return their names."""
        added = [one for one in processes if one.name not in self._all or self._all[one.name].has_ended_badly]
        for process in added:
            self._all[process.name] = Supervised(process, self._folder, self._settings, self._publish)
            self._state.services[process.name] = self._all[process.name].state
            self._state.feature_spec = process.env.get(_FEATURE_SPEC, self._state.feature_spec)
        return [process.name for process in added]

    def _run(self, names: Iterable[str]) -> None:
        for name in names:
            task = asyncio.create_task(self._all[name].run(partial(self._dependencies, name)), name=name)
            task.add_done_callback(self._on_supervision_ended)
            self._tasks.append(task)

    def _on_supervision_ended(self, task: asyncio.Task[None]) -> None:
        """End the mesh, and say why: a service that nobody watches any more must not look well."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("%s: its supervision failed", task.get_name(), exc_info=error)
        self._state.message = f"{task.get_name()}: its supervision failed: {error!r}"
        self._stop.set()

    def _on_request(self) -> None:
        """Start what the request names beside what runs; a plan that fails is refused and changes nothing."""
        request = self._folder.requested()
        if request is None:
            _log.warning("SIGHUP without a request to start anything: nothing happens")
            return
        self._state.answered, self._state.refused = request.id, ""
        lost = [name for name, one in self._all.items() if one.process.in_memory_broker and one.has_ended_badly]
        if self._state.phase != "up":
            self._state.refused = f"the mesh is {self._state.phase}, not up"
        elif lost:  # an empty log beside states that were derived from the lost one
            self._state.refused = f"{lost[0]} has lost its log: stop the mesh (make down) and start it again"
        else:
            try:
                self._run(self._add(self._plan(request.services)))
            except ConfigurationError as error:
                self._state.refused = str(error)
        _log.info("asked to start %s: %s", ", ".join(request.services), self._state.refused or "yes")
        self._publish()

    async def _start_up(self) -> None:
        """Wait until every service answers; when one failed or the time is up, note the reason in the state and stop the mesh."""
        deadline = time.monotonic() + self._settings.start_timeout_ms / 1000
        while True:
            failed = [f"{name}: {one.state.message}" for name, one in self._all.items() if one.state.state == "failed"]
            late = [f"{name} ({one.state.state})" for name, one in self._all.items() if one.state.state not in ANSWERING]
            if not late:
                self._state.phase, self._state.was_up = "up", True
                self._publish()
                _log.info("all %d services are up", len(self._all))
                return
            if failed or time.monotonic() > deadline:
                seconds = self._settings.start_timeout_ms / 1000
                self._state.message = "; ".join(failed) or f"not up after {seconds:.0f} s: {', '.join(late)}"
                _log.error("%s", self._state.message)
                self._stop.set()
                return
            await self._change(1.0)

    async def _dependencies(self, name: str) -> None:
        """Return when the dependencies of a service allow its start; for ever when one failed (the start-up then ends it)."""
        while True:
            if all(self._is_met(other, condition) for other, condition in self._all[name].process.depends_on.items()):
                return
            await self._change(1.0)

    def _is_met(self, name: str, condition: str) -> bool:
        one = self._all[name]
        if condition == "service_healthy":
            return one.state.state == "healthy"
        if condition == "service_completed_successfully":
            return one.state.state == "done"
        return one.was_started

    async def _stop_all(self) -> None:
        """Stop each service as soon as all that depend on it have ended."""
        stops: dict[str, asyncio.Task[None]] = {}

        async def stop(name: str) -> None:
            users = [stops[other] for other, one in self._all.items() if name in one.process.depends_on]
            await asyncio.gather(*users, return_exceptions=True)
            await self._all[name].stop()

        for name in self._all:
            stops[name] = asyncio.create_task(stop(name))
        await asyncio.gather(*stops.values())

    async def _owner_gone(self, owner: ProcessId) -> None:
        while owner.is_alive:
            await asyncio.sleep(0.5)
        _log.warning("the owner (pid %d) is gone: stopping the mesh", owner.pid)
        self._stop.set()

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            for one in self._all.values():
                one.hurry()

    async def _change(self, timeout_s: float) -> None:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def _publish(self) -> None:
        try:
            self._folder.write(self._state)
        except OSError as error:  # a full disk is no reason to stop supervising; the next change is written again
            _log.error("the state of the mesh cannot be written: %s", error)
        self._changed.set()
        self._changed = asyncio.Event()


async def supervise(plan: Plan, names: Names, folder: RunFolder, settings: MeshSettings, owner_pid: int | None) -> int:
    """Run the mesh in this process, at first the services `names` (all when empty); return the exit code.

    Raises:
        ConfigurationError: the owner is already gone, or `plan` fails.
    """
    owner = ProcessId.of(owner_pid) if owner_pid else None
    if owner_pid and owner is None:
        raise ConfigurationError(f"the owner, pid {owner_pid}, is already gone")
    return await Supervisor(plan, names, folder, settings, owner=owner).run()
