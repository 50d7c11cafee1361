"""One process of the mesh, over all its restarts: starts it, watches its health, starts it again, stops it with all its children.

What follows an exit is decided in `restarts`; whether a process is ready is asked by `readiness`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from services.common.platform.clock import wall_ms
from services.mesh.runner import embedded, readiness, restarts
from services.mesh.runner.plan import Process
from services.mesh.runner.restarts import Backoff
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.settings import MeshSettings
from services.mesh.runner.state import ProcessId, ServiceState, State, kill

_log = logging.getLogger("mesh")

_LAUNCHER = Path(__file__).with_name("launch.py")
_PORT_WAIT_S = 5.0
_POLL_S = 0.1
# Whoever waits for a service waits for its next health check too.
_UNWELL_POLL_S: dict[State, float] = {"starting": 0.2, "not_serving": 0.5, "unhealthy": 0.5}


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
        settings = self._settings
        backoff = Backoff(
            initial_s=settings.backoff_initial_ms / 1000, max_s=settings.backoff_max_ms / 1000, reset_s=settings.backoff_reset_ms / 1000
        )
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
                ending = restarts.ending(code)
            pause_s = backoff.pause_s(time.monotonic() - started)
            self._become("backoff", f"{ending}; starts again in {pause_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
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
                *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(process.niceness), *process.argv),
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
        """Note the state that it stays in after this exit; False when it is to be started again."""
        if self._stopping.is_set():
            self._become("stopped", "")
            return True
        said = self._last_words()
        final = restarts.after_exit(self.process, code, said)
        if final is None:
            _log.warning("%s %s: %s", self.process.name, restarts.ending(code), said)
            return False
        self._become(final.state, final.message)
        if final.state == "failed":
            _log.error("%s failed: %s", self.process.name, final.message)
        return True

    async def _watch_health(self) -> None:
        ready = self.process.ready
        if ready.kind == "exit":
            return
        dead_sightings = 0
        while True:
            found = await readiness.check(ready, self.process)
            if found is None:
                found = "unhealthy" if self.state.state in ("healthy", "not_serving", "unhealthy") else "starting"
            if found != self.state.state:
                self._become(found, "")
            # Twice in a row: a model that loads has a short-lived child that is dead for a moment before it is waited for.
            dead_sightings = dead_sightings + 1 if ready.kind == "triton" and readiness.has_dead_child(self.state.pid) else 0
            if found == "healthy" and dead_sightings >= 2:
                # Triton goes on calling itself ready, fails every request and never starts the stub again.
                _log.warning("%s lost the process of a model: it is killed and started again", self.process.name)
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
        return restarts.last_words(tail)

    def _become(self, state: State, message: str) -> None:
        self.state.state, self.state.message, self.state.since_ms = state, message, wall_ms()
        self._publish()


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
