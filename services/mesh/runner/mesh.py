"""The mesh as a library: start it, look at it, stop it. The command line, the demo and the tests use this.

    with Mesh(env={"TUNEMESH_JOINER_WINDOW_MS": "2000"}) as mesh:
        mesh.up()
        channel = grpc.insecure_channel(mesh.address("router"))
        mesh.start("llm")  # beside what runs

The supervisor is a process of its own, in its own session: a Ctrl-C in the terminal reaches the caller only, who then calls `down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import load_settings, variable_of, without_service_links
from services.mesh.runner import embedded
from services.mesh.runner.compose import selected
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.plan import Planner
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.settings import MeshSettings
from services.mesh.runner.state import ANSWERING, MeshState, ProcessId, ServiceState, StartRequest, kill

_POLL_S = 0.1


class Mesh:
    """One mesh: what docker-compose.yml describes, as local processes that live in one run folder."""

    def __init__(
        self,
        compose_path: Path = REPOSITORY_ROOT / "docker-compose.yml",
        *,
        env: Mapping[str, str] | None = None,
        run_dir: Path | None = None,
        services: tuple[str, ...] = (),
        free_ports: bool = False,
        keep: bool = False,
        settings: MeshSettings | None = None,
    ) -> None:
        """Plan the mesh; nothing starts before `up`.

        Args:
            compose_path: the description.
            env: variables over those of this process: values of `${VARIABLE}` references and TUNEMESH_… settings of the services.
            run_dir: folder of state, logs and volumes; default TUNEMESH_MESH_RUN_DIR.
            services: start only these and what they depend on; default all.
            free_ports: give every service a port that is free now, rather than the stated one.
            keep: leave it running when this process ends or the `with` block is left.
            settings: of the runner; default from the environment.
        Raises:
            ConfigurationError: the description, a port or a setting is wrong. One line.
        """
        self._environ = {**os.environ, **(env or {})}
        base = settings or load_settings(MeshSettings)
        self.settings = base.model_copy(update={"compose_file": compose_path, "run_dir": run_dir or base.run_dir})
        self.folder = RunFolder(self.settings.run_dir)
        self._names, self._keep = services, keep
        if free_ports:
            compose = load_compose(compose_path, self._environ)
            moved = dict.fromkeys(variable for one in compose.services.values() if one.local for variable in one.local.ports.values())
            self._environ |= {variable: str(port) for variable, port in zip(moved, embedded.free_ports(len(moved)), strict=True)}
        self._planner = planner_for(self.settings, self._environ, services)
        self._supervisor: subprocess.Popen[bytes] | None = None

    def up(self, progress: Callable[[MeshState], None] | None = None) -> None:
        """Start everything and return once every service answers its health check (it may say NOT_SERVING).

        Args:
            progress: called with each new state on the way.
        Raises:
            ConfigurationError: something cannot start: which service and why. Everything that was started is stopped again.
        """
        self.folder.lock(as_supervisor=False).close()  # says at once that a mesh is already up here
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "services.mesh", "supervise", "--file", str(self.settings.compose_file.resolve())]
        argv += ["--run-dir", str(self.folder.path), *([] if self._keep else ["--owner", str(os.getpid())]), *self._names]
        own = {variable_of(self.settings, name): str(value) for name, value in self.settings if value is not None}
        log = self.folder.log("supervisor")
        with log.open("wb") as output:
            self._supervisor = subprocess.Popen(
                argv,
                env=self._environ | own,
                cwd=REPOSITORY_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait_until_up(self._supervisor, log, progress)
        except BaseException:
            self._end_own()
            raise

    def start(self, *names: str, progress: Callable[[MeshState], None] | None = None, timeout_s: float | None = None) -> None:
        """Start more services of the running mesh, with what they depend on, and return once each answers its health check.

        What runs already is left alone; one that has failed is started anew. They see the variables that the mesh was started with.

        Args:
            names: services of the compose file.
            progress: called with each state on the way.
            timeout_s: default `start_timeout_ms` of the settings.
        Raises:
            ConfigurationError: the mesh is not up, a name or variable is wrong, or one did not start: which and why. What runs stays.
        """
        if self.state().phase != "up":
            raise ConfigurationError(f"the mesh in {self.folder.path} is {self.state().phase}, not up: start it first (up)")
        planner = planner_for(self.settings, self._environ, names)
        request = StartRequest(id=str(uuid.uuid4()), services=names)
        self.folder.request(request)
        kill(self.state().supervisor_pid, signal.SIGHUP)
        deadline = time.monotonic() + (self.settings.start_timeout_ms / 1000 if timeout_s is None else timeout_s)
        while not self._have_started(request, set(planner.services), progress):
            if time.monotonic() > deadline:
                late = [name for name, one in self.services().items() if name in planner.services and one.state not in ANSWERING]
                raise ConfigurationError(f"not up in time: {', '.join(late)} (logs: {self.folder.logs})")
            time.sleep(_POLL_S)

    def _have_started(self, request: StartRequest, names: set[str], progress: Callable[[MeshState], None] | None) -> bool:
        """Whether every service of a request answers.

        Raises:
            ConfigurationError: the supervisor refused, one failed, or the mesh has ended.
        """
        state = self.state()
        if state.phase != "up":
            raise ConfigurationError(f"the mesh is {state.phase}: {state.message or 'it was stopped meanwhile'}")
        if state.answered != request.id:
            return False
        if progress is not None:
            progress(state)
        failed = [f"{name}: {one.message}" for name, one in state.services.items() if name in names and one.state == "failed"]
        if state.refused or failed:
            raise ConfigurationError(f"{state.refused or '; '.join(failed)} (logs: {self.folder.logs})")
        # The supervisor plans by its own variables: what is a server of the mesh here may be an external one there.
        return all(state.services[name].state in ANSWERING for name in names if name in state.services)

    def down(self) -> None:
        """Stop every process of the mesh and return when none is left. A mesh that is not up is no error."""
        holder = self.folder.holder()
        if holder is not None:
            kill(holder, signal.SIGTERM)
            while self.folder.holder() == holder:
                try:
                    time.sleep(_POLL_S)
                except KeyboardInterrupt:  # a second Ctrl-C: do not wait for the grace times
                    kill(holder, signal.SIGTERM)
        self._end_own()
        if self.folder.read() is not None:
            with (
                contextlib.suppress(ConfigurationError),
                self.folder.lock(as_supervisor=False),
            ):  # one that has just begun is not ours to clear
                self.folder.kill_leftovers()

    def _end_own(self) -> None:
        """End the supervisor that `up` started, if it did; one that somebody else started in the same folder goes on."""
        own, self._supervisor = self._supervisor, None
        if own is not None:
            own.terminate()
        while own is not None and own.poll() is None:
            try:
                time.sleep(_POLL_S)
            except KeyboardInterrupt:  # a second Ctrl-C: do not wait for the grace times
                own.terminate()

    def state(self) -> MeshState:
        """Return what the supervisor last said; phase "down" when it has never run or has been killed."""
        state = self.folder.read() or MeshState(phase="down")
        if state.phase in ("starting", "up", "stopping") and not self.folder.is_up():
            state.phase, state.message = "down", "the supervisor was killed; what it ran has ended with it"
        return state

    def services(self) -> dict[str, ServiceState]:
        """Return the state of each service by name."""
        return self.state().services

    def pids(self) -> dict[str, int]:
        """Return the pid of each running service by name; finished jobs and stopped services are left out."""
        return {name: one.pid for name, one in self.services().items() if one.pid and ProcessId(one.pid, one.start_ticks).is_alive}

    def restarts(self) -> dict[str, int]:
        """Return by name how often each service was started again."""
        return {name: one.restarts for name, one in self.services().items()}

    def failures(self) -> dict[str, str]:
        """Return by name why a service has failed for good (it is not started again); empty when all is well."""
        return {name: one.message for name, one in self.services().items() if one.state == "failed"}

    def address(self, service: str, inside: int | None = None) -> str:
        """Return `127.0.0.1:PORT` of a service; `inside` is its port in compose, the first one by default."""
        return self._planner.address(service, inside)

    def environment(self, service: str) -> dict[str, str]:
        """Return the variables that a service is given, translated for this machine: its folders, ports and the others' addresses."""
        return self._planner.environment(service)

    def external(self) -> dict[str, str]:
        """Return by name the services that are not started, with the variable that points at the outside server."""
        return dict(self._planner.external)

    def log_path(self, service: str) -> Path:
        """Return the log file of a service."""
        return self.folder.log(service)

    def wait_healthy(self, *names: str, timeout_s: float = 60.0) -> None:
        """Return when the named services say SERVING.

        Raises:
            ConfigurationError: one failed, or the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            states = self.services()
            left = [name for name in names if name not in states or states[name].state != "healthy"]
            if not left:
                return
            failed = self.failures()
            if failed or time.monotonic() > deadline:
                said = (
                    "; ".join(f"{name}: {why}" for name, why in failed.items()) or f"not healthy after {timeout_s:.0f} s: {', '.join(left)}"
                )
                raise ConfigurationError(f"{said} (logs: {self.folder.logs})")
            time.sleep(_POLL_S)

    def __enter__(self) -> Mesh:
        """Return the mesh; it is not started yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the mesh that `up` started here, unless it is kept and all went well."""
        if self._supervisor is not None and (not self._keep or kind is not None):
            self.down()

    def _wait_until_up(self, supervisor: subprocess.Popen[bytes], log: Path, progress: Callable[[MeshState], None] | None) -> None:
        while True:
            state = self.folder.read()
            is_new = state is not None and state.supervisor_pid == supervisor.pid
            if state is not None and is_new and progress is not None:
                progress(state)
            if state is not None and is_new and state.phase == "up":
                return
            if supervisor.poll() is not None:
                state = self.folder.read()
                is_new = state is not None and state.supervisor_pid == supervisor.pid and bool(state.message)
                said = state.message if state is not None and is_new else embedded.last_line(log.read_text(errors="replace"))
                raise ConfigurationError(f"the mesh did not start: {said} (logs: {self.folder.logs})")
            time.sleep(_POLL_S)


def planner_for(settings: MeshSettings, environ: Mapping[str, str], names: tuple[str, ...]) -> Planner:
    """Read the compose file of `settings` and return the planner of the services `names` (all when empty).

    Raises:
        ConfigurationError: the description or a port is wrong.
    """
    environ = without_service_links(environ)
    compose = load_compose(settings.compose_file, environ)
    return Planner(compose, selected(compose, names), settings=settings, environ=environ, environments=Environments.of_repository())
