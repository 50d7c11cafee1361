"""The folder of one mesh: `state.json`, the supervisor's lock, start requests, logs and volumes; and what an earlier run left in it.

Linux only: it finds leftovers of a killed supervisor through /proc. Knows nothing about compose.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from services.common.platform.clock import wall_ms
from services.common.platform.errors import ConfigurationError
from services.mesh.runner.state import MeshState, ProcessId, ServiceState, StartRequest, kill

_log = logging.getLogger("mesh")

_WITHOUT_NAME_S = 10.0
_DURABLE = ".durable"
"""In volumes that belong to a log which outlives the mesh."""
RUN_DIR_VARIABLE = "TUNEMESH_RUN_DIR"
"""Every process of a mesh has it in its environment; it names the mesh's run folder."""


class RunFolder:
    """The files of one mesh: state, lock, logs and volumes."""

    def __init__(self, path: Path) -> None:
        """`path` is created when the lock is taken."""
        self.path = path.resolve()
        self.logs = self.path / "logs"

    def log(self, service: str) -> Path:
        """Return the log file of a service; "supervisor" is the supervisor's own."""
        return self.logs / f"{service}.log"

    def lock(self, *, as_supervisor: bool = True) -> IO[str]:
        """Take the folder until the returned file is closed.

        Args:
            as_supervisor: who looks for the supervisor is told this process; others take the folder for a moment.
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
        try:
            file.truncate(0)
            print(os.getpid() if as_supervisor else "", file=file, flush=True)
        except OSError as error:
            file.close()
            raise ConfigurationError(f"the run folder {self.path} cannot be written: {error.strerror or error}") from error
        return file

    def holder(self) -> int | None:
        """Return the pid of the supervisor that holds the folder; None: none does. The state file may still be an earlier one's."""
        deadline = time.monotonic() + _WITHOUT_NAME_S
        while self.is_up():
            said = (self.path / "lock").read_text(encoding="utf-8").strip()
            if said.isdecimal():
                return int(said)
            if time.monotonic() > deadline:  # a supervisor of an older program writes no name
                state = self.read()
                return state.supervisor_pid if state is not None and state.supervisor_pid else None
            time.sleep(0.01)
        return None

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

    def processes(self) -> list[int]:
        """Return the pids of all processes, but this one, whose environment says that they belong to this folder."""
        marker = f"{RUN_DIR_VARIABLE}={self.path}".encode()
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

    def kill_leftovers(self) -> list[int]:
        """Kill what a supervisor that was itself killed left running; return the pids. Call with the lock held."""
        old = self.read()
        known: Mapping[str, ServiceState] = old.services if old else {}
        leftovers = {service.pid for service in known.values() if service.pid and ProcessId(service.pid, service.start_ticks).is_alive}
        leftovers |= set(self.processes())
        for pid in leftovers:
            kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5.0
        while any(ProcessId.of(pid) is not None for pid in leftovers) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sorted(leftovers)

    def _replace(self, name: str, content: Mapping[str, Any]) -> None:
        fresh = self.path / f"{name}.new"
        fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
        fresh.replace(self.path / name)


def _put_durable_aside(path: Path) -> None:
    """Keep volumes of a log that outlives the mesh, which an in-memory start has put aside before, under another name."""
    if (path / "volumes.previous" / _DURABLE).exists():
        names = (f"volumes.durable{number or ''}" for number in itertools.count())
        (path / "volumes.previous").rename(path / next(name for name in names if not (path / name).exists()))


def prepare_folder(folder: RunFolder, *, forget_volumes: bool) -> None:
    """Clear the ground for a new start, the lock held: kill leftovers, put the last run's logs and volumes aside.

    Args:
        folder: the run folder.
        forget_volumes: the broker's log did not survive, so what was derived from it (features, tables, checkpoints) must not either;
            it is kept as `volumes.previous` until the next one that came up, and for good where its log did outlive it.
    """
    previous = folder.read()
    leftovers = folder.kill_leftovers()
    if leftovers:
        _log.warning("killed %d processes that an earlier supervisor had left behind: %s", len(leftovers), leftovers)
    if forget_volumes and (folder.path / "volumes").exists():
        is_durable = (folder.path / "volumes" / _DURABLE).exists()
        if previous is not None and not previous.was_up and not is_durable:  # nothing was learned in a start that failed
            shutil.rmtree(folder.path / "volumes")
        else:
            _put_durable_aside(folder.path)
            shutil.rmtree(folder.path / "volumes.previous", ignore_errors=True)
            (folder.path / "volumes").rename(folder.path / "volumes.previous")
    folder.forget_request()
    shutil.rmtree(folder.path / "logs.previous", ignore_errors=True)
    for name in ("volumes", "logs", "logs.previous"):
        (folder.path / name).mkdir(parents=True, exist_ok=True)
    if not forget_volumes:
        (folder.path / "volumes" / _DURABLE).touch()
    # From here on this start counts, also when its plan fails.
    folder.write(MeshState(supervisor_pid=os.getpid(), started_ms=wall_ms()))
    for log in folder.logs.glob("*.log"):
        if log != folder.log("supervisor"):  # this process writes to it already
            log.rename(folder.path / "logs.previous" / log.name)
