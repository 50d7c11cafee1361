"""Keeps the processes of one mesh running: `python -m services.mesh supervise`, started by `up`.

Starts in dependency order, checks health, starts again what dies (with a growing pause), stops in reverse order on SIGTERM.
Writes `state.json`; on SIGHUP it also starts the services that `start.json` names. Ends by itself when its owner (a demo or test) is gone.
Knows processes and readiness, nothing about what the services do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import psutil

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import EXIT_BAD_CONFIGURATION
from services.mesh.runner import embedded, health
from services.mesh.runner.plan import RUN_DIR_VARIABLE, Process, Ready
from services.mesh.runner.settings import MeshSettings
from services.mesh.runner.state import ANSWERING, MeshState, ProcessId, RunFolder, ServiceState, State, kill

_log = logging.getLogger("mesh")

Names = tuple[str, ...]
Plan = Callable[[Names], Sequence[Process]]

_LAUNCHER = Path(__file__).with_name("launch.py")
_PORT_WAIT_S = 5.0
_POLL_S = 0.1
# Whoever waits for a service waits for its next health check too.
_UNWELL_POLL_S: dict[State, float] = {"starting": 0.2, "not_serving": 0.5, "unhealthy": 0.5}
_CONFIGURATION_ERROR = re.compile(r"configuration error: [^\\\n]*")


class Supervised:
    """One process of the mesh, over all its restarts. All methods run in the supervisor's event loop."""

    def __init__(self, process: Process, folder: RunFolder, settings: MeshSettings, publish: Callable[[], None]) -> None:
        """`publish` is called after every change of `state`."""
        self.process, self.state = process, ServiceState(ports=dict(process.ports), since_ms=wall_ms())
        self._folder, self._settings, self._publish = folder, settings, publish
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def has_ended_badly(self) -> bool:
        """Whether it has failed for good or was stopped, so that starting it means a new beginning."""
        return self.state.state in ("failed", "stopped")

    @property
    def was_started(self) -> bool:
        """Whether it has run at least once."""
        return self.state.pid != 0

    async def run(self, dependencies_met: Callable[[], Awaitable[None]]) -> None:
        """Start it once its dependencies allow, and again whenever it dies; return when it is done, failed or stopped."""
        await dependencies_met()
        backoff_s = self._settings.backoff_initial_ms / 1000
        while not self._stopping.is_set():
            taken = await self._wait_for_ports()
            if taken or self._stopping.is_set():
                self._become("failed" if taken else "stopped", taken)
                return
            started = time.monotonic()
            try:
                code = await self._live()
            except OSError as error:  # no memory, no descriptor, no room for its log: that may pass
                ending = f"could not be started: {error}"
                _log.error("%s %s", self.process.name, ending)
            else:
                if self._ended_for_good(code):
                    return
                ending = _ending(code)
            if time.monotonic() - started > self._settings.backoff_reset_ms / 1000:
                backoff_s = self._settings.backoff_initial_ms / 1000
            self._become("backoff", f"{ending}; starts again in {backoff_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
            backoff_s = min(2 * backoff_s, self._settings.backoff_max_ms / 1000)
        self._become("stopped", "")

    async def stop(self) -> None:
        """Ask it to end, kill its whole group after the grace time, and return when nothing of it is left."""
        self._stopping.set()
        child = self._child
        if child is None:
            if self.state.state not in ("failed", "done"):
                self._become("stopped", "")
            return
        kill(child.pid, signal.SIGTERM)
        waits = [asyncio.ensure_future(child.wait()), asyncio.ensure_future(self._hurry.wait())]
        await asyncio.wait(waits, timeout=self.process.stop_grace_s, return_when=asyncio.FIRST_COMPLETED)
        if child.returncode is None:
            _log.warning("%s did not end within %.0f s of SIGTERM: killed", self.process.name, self.process.stop_grace_s)
        kill(child.pid, signal.SIGKILL, group=True)
        await child.wait()
        for wait in waits:
            wait.cancel()

    def hurry(self) -> None:
        """Do not wait for the grace time any longer."""
        self._hurry.set()

    async def _live(self) -> int:
        """Spawn the process, watch its health until it ends, kill what is left of its group, and return its exit code."""
        process = self.process
        self._clear_shared_memory()
        log = self._folder.log(process.name)
        with log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCHER), str(_own_pid()), str(process.niceness), *process.argv),
                env=dict(process.env),
                cwd=process.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._child = child
        identity = ProcessId.of(child.pid)
        self.state.restarts += 1 if self.was_started else 0
        self.state.pid, self.state.start_ticks = child.pid, identity.start_ticks if identity else 0
        self._become("starting", "")
        _log.info("%s started: pid %d, restart %d", process.name, child.pid, self.state.restarts)
        watch = asyncio.create_task(self._watch_health())
        try:
            return await child.wait()
        finally:
            kill(child.pid, signal.SIGKILL, group=True)
            self._clear_shared_memory()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            self._child = None

    def _clear_shared_memory(self) -> None:
        """Remove what a killed Triton leaves in /dev/shm."""
        if self.process.ready.kind == "triton":
            for port in self.process.ports.values():
                embedded.remove_shared_memory(port)

    def _ended_for_good(self, code: int) -> bool:
        """Decide whether it stays down after this exit, and note why."""
        name, restart = self.process.name, self.process.restart
        if self._stopping.is_set():
            self._become("stopped", "")
        elif self.process.in_memory_broker:
            self._become("failed", f"{_ending(code)}; its log was in memory and is lost: stop the mesh (make down) and start it again")
        elif code == EXIT_BAD_CONFIGURATION or (code > 0 and _CONFIGURATION_ERROR.match(self._last_words())):
            self._become("failed", self._last_words())
        elif code == 0 and restart in ("no", "on-failure"):
            self._become("done", "")
        elif restart == "no":
            self._become("failed", f"{_ending(code)}: {self._last_words()}")
        else:
            _log.warning("%s %s: %s", name, _ending(code), self._last_words())
            return False
        if self.state.state == "failed":
            _log.error("%s failed: %s", name, self.state.message)
        return True

    async def _watch_health(self) -> None:
        ready = self.process.ready
        if ready.kind == "exit":
            return
        dead_sightings = 0
        while True:
            found = await check(ready, self.process)
            if found is None:
                found = "unhealthy" if self.state.state in ("healthy", "not_serving", "unhealthy") else "starting"
            if found != self.state.state:
                self._become(found, "")
            # Twice in a row: a model that loads has a short-lived child that is dead for a moment before it is waited for.
            dead_sightings = dead_sightings + 1 if ready.kind == "triton" and _has_dead_child(self.state.pid) else 0
            if found == "healthy" and dead_sightings >= 2:
                # Triton goes on calling itself ready, fails every request and never starts the stub again.
                _log.warning("%s lost the process of a model: killed, to be started again", self.process.name)
                kill(self.state.pid, signal.SIGKILL, group=True)
                return
            await asyncio.sleep(_UNWELL_POLL_S.get(found, ready.interval_s))

    async def _wait_for_ports(self) -> str:
        """Return "" once every port is free, or a sentence that names the one that is not. Only a restart waits."""
        deadline = time.monotonic() + (_PORT_WAIT_S if self.was_started else 0.0)
        while not self._stopping.is_set():
            taken = next(((variable, port) for variable, port in self.process.ports.items() if not _is_free(port)), None)
            if taken is None:
                return ""
            if time.monotonic() >= deadline:
                variable, port = taken
                message = f"port {port} of {self.process.name} is already taken{_holder(port)}: end that, or set {variable} to a free port"
                _log.error("%s", message)
                return message
            await asyncio.sleep(_POLL_S)
        return ""

    def _last_words(self) -> str:
        try:
            with self._folder.log(self.process.name).open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - 4096))
                tail = log.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error})"
        # Triton wraps what a model raised into lines of its own.
        wrapped = _CONFIGURATION_ERROR.search(tail)
        return wrapped[0] if wrapped else embedded.last_line(tail)

    def _become(self, state: State, message: str) -> None:
        self.state.state, self.state.message, self.state.since_ms = state, message, wall_ms()
        self._publish()


class Supervisor:
    """All processes of one mesh."""

    def __init__(self, plan: Plan, names: Names, folder: RunFolder, settings: MeshSettings, *, owner: ProcessId | None = None) -> None:
        """`plan` gives the processes of services in start order; with an `owner`, the mesh ends when that process does.

        Raises:
            ConfigurationError: from `plan`.
        """
        self._plan, self._folder, self._settings, self._owner = plan, folder, settings, owner
        self._state = MeshState(supervisor_pid=_own_pid(), started_ms=wall_ms())
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
        return [process.name for process in added]

    def _run(self, names: Iterable[str]) -> None:
        for name in names:
            task = asyncio.create_task(self._all[name].run(partial(self._dependencies, name)), name=name)
            task.add_done_callback(self._on_supervision_ended)
            self._tasks.append(task)

    def _on_supervision_ended(self, task: asyncio.Task[None]) -> None:
        """A service that nobody watches any more must not look well: the mesh ends, and says why."""
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


async def check(ready: Ready, process: Process) -> State | None:
    """Return the state that a running process shows, or None when it does not answer."""
    if ready.kind == "alive":
        return "healthy"
    if ready.kind == "grpc":
        status = await health.probe(ready.port, timeout_s=ready.timeout_s)
        return None if status is None else "healthy" if status == "SERVING" else "not_serving"
    if ready.kind == "command":
        return "healthy" if await _succeeds(ready, process) else None
    probes = {
        "broker": embedded.broker_ready,
        "redis": embedded.redis_ready,
        "triton": embedded.triton_ready,
        "mlflow": embedded.mlflow_ready,
    }
    return "healthy" if await asyncio.to_thread(probes[ready.kind], ready.port) else None


def prepare_folder(folder: RunFolder, *, forget_volumes: bool) -> None:
    """Clear the ground for a new start, the lock held: kill leftovers, put the last run's logs and volumes aside.

    Args:
        folder: the run folder.
        forget_volumes: the broker's log did not survive, so what was derived from it (features, tables, checkpoints) must not either;
            it is kept as `volumes.previous` until the next one that came up.
    """
    previous = folder.read()
    leftovers = folder.kill_leftovers(RUN_DIR_VARIABLE)
    if leftovers:
        _log.warning("killed %d processes that an earlier supervisor had left behind: %s", len(leftovers), leftovers)
    if forget_volumes and (folder.path / "volumes").exists():
        if previous is not None and not previous.was_up:  # nothing was learned in a start that failed
            shutil.rmtree(folder.path / "volumes")
        else:
            shutil.rmtree(folder.path / "volumes.previous", ignore_errors=True)
            (folder.path / "volumes").rename(folder.path / "volumes.previous")
    folder.forget_request()
    shutil.rmtree(folder.path / "logs.previous", ignore_errors=True)
    for name in ("volumes", "logs", "logs.previous"):
        (folder.path / name).mkdir(parents=True, exist_ok=True)
    for log in folder.logs.glob("*.log"):
        if log != folder.log("supervisor"):  # this process writes to it already
            log.rename(folder.path / "logs.previous" / log.name)


async def _succeeds(ready: Ready, process: Process) -> bool:
    """Run a health command; it counts as failed when it takes longer than its timeout."""
    child = await asyncio.create_subprocess_exec(
        *ready.command,
        env=dict(process.env),
        cwd=process.cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(ready.timeout_s):
            return await child.wait() == 0
    except TimeoutError:
        return False
    finally:
        if child.returncode is None:
            kill(child.pid, signal.SIGKILL, group=True)
            await child.wait()


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((embedded.LOOPBACK, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Return " (by pid N, NAME)" for the process that listens on a port, "" when it cannot be told."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" (by pid {connection.pid}, {psutil.Process(connection.pid).name()})"
    except psutil.Error:
        _log.debug("may not see who holds port %d", port)
    return ""


def _has_dead_child(pid: int) -> bool:
    try:
        return any(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _own_pid() -> int:
    return os.getpid()


async def supervise(plan: Plan, names: Names, folder: RunFolder, settings: MeshSettings, owner_pid: int | None) -> int:
    """Run the mesh in this process, at first the services `names` (all when empty); return the exit code.

    Raises:
        ConfigurationError: the owner is already gone, or `plan` fails.
    """
    owner = ProcessId.of(owner_pid) if owner_pid else None
    if owner_pid and owner is None:
        raise ConfigurationError(f"the owner, pid {owner_pid}, is already gone")
    return await Supervisor(plan, names, folder, settings, owner=owner).run()
