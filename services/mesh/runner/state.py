"""What a running mesh says about itself: `state.json` in the run folder, written by the supervisor, read by everybody else.

Also who a process is (pid and start time, since pids are used again) and how leftovers of a killed supervisor are found.
Linux only: it reads /proc. Knows nothing about compose.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from services.common.platform.errors import ConfigurationError

Phase = Literal["starting", "up", "stopping", "down", "failed"]
State = Literal["waiting", "starting", "healthy", "not_serving", "unhealthy", "backoff", "done", "failed", "stopped"]

ANSWERING: frozenset[State] = frozenset({"healthy", "not_serving", "done"})


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for sure: its pid and the kernel's start time (clock ticks since boot)."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a living process, None when there is none (a zombie counts as none)."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self


@dataclass(slots=True, kw_only=True)
class ServiceState:
    """One service as the supervisor sees it. `message` says why when it is not well; `restarts` counts starts after the first."""

    state: State = "waiting"
    pid: int = 0
    start_ticks: int = 0
    restarts: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    since_ms: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What `Mesh.start` asks of a running supervisor: start these services too. `id` is answered in `MeshState.answered`."""

    id: str
    services: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class MeshState:
    """The whole mesh. `message` says why it failed; `answered` is the last start request seen, `refused` why it was not obeyed.

    `was_up`: whether every service has answered once.
    """

    phase: Phase = "starting"
    supervisor_pid: int = 0
    was_up: bool = False
    message: str = ""
    answered: str = ""
    refused: str = ""
    started_ms: int = 0
    services: dict[str, ServiceState] = field(default_factory=dict)


class RunFolder:
    """The files of one mesh: state, lock, logs and volumes."""

    def __init__(self, path: Path) -> None:
        """`path` is created when the lock is taken."""
        self.path = path.resolve()
        self.logs = self.path / "logs"

    def log(self, service: str) -> Path:
        """Return the log file of a service; "supervisor" is the supervisor's own."""
        return self.logs / f"{service}.log"

    def lock(self) -> IO[str]:
        """Take the folder for one supervisor until the returned file is closed.

        Raises:
            ConfigurationError: another supervisor has it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"the run folder {self.path} cannot be written: {error.strerror or error}; "
                "give the folder back to this user, or set TUNEMESH_MESH_RUN_DIR to another"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigurationError(f"a mesh is already up in {self.path}: stop it first (make down), or use another run folder") from None
        return file

    def is_up(self) -> bool:
        """Whether a supervisor holds the folder."""
        try:
            with (self.path / "lock").open(encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write(self, state: MeshState) -> None:
        """Replace the state file in one step."""
        self._replace("state.json", asdict(state))

    def read(self) -> MeshState | None:
        """Return the last state that was written, None when there is none."""
        try:
            raw = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        services = {name: ServiceState(**body) for name, body in raw.pop("services").items()}
        return MeshState(**raw, services=services)

    def request(self, request: StartRequest) -> None:
        """Leave a request for the supervisor, which reads it on SIGHUP; a request that has not been read is replaced."""
        self._replace("start.json", asdict(request))

    def requested(self) -> StartRequest | None:
        """Return the request that was left last, None when there is none."""
        try:
            raw = json.loads((self.path / "start.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return StartRequest(id=raw["id"], services=tuple(raw["services"]))

    def forget_request(self) -> None:
        """Remove what was asked of an earlier supervisor."""
        (self.path / "start.json").unlink(missing_ok=True)

    def _replace(self, name: str, content: Mapping[str, Any]) -> None:
        fresh = self.path / f"{name}.new"
        fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
        fresh.replace(self.path / name)

    def processes(self, variable: str) -> list[int]:
        """Return the pids of all processes, but this one, whose environment says that they belong to this folder."""
        marker = f"{variable}={self.path}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile, or belongs to somebody else
            if marker in environment and ProcessId.of(int(entry.name)) is not None:
                found.append(int(entry.name))
        return found

    def kill_leftovers(self, variable: str) -> list[int]:
        """Kill what a supervisor that was itself killed left running; return the pids. Call with the lock held."""
        old = self.read()
        known: Mapping[str, ServiceState] = old.services if old else {}
        leftovers = {service.pid for service in known.values() if service.pid and ProcessId(service.pid, service.start_ticks).is_alive}
        leftovers |= set(self.processes(variable))
        for pid in leftovers:
            kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5.0
        while any(ProcessId.of(pid) is not None for pid in leftovers) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sorted(leftovers)


def kill(pid: int, number: signal.Signals, *, group: bool = False) -> bool:
    """Send a signal to a process, or to its whole group; return False when there is nobody left."""
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
