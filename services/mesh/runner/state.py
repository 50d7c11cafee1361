"""What a running mesh says about itself: the supervisor writes it, everybody else reads it (`run_folder` holds the file).

Also who a process is: pid and start time, since pids are used again. Linux only: it reads /proc. Knows nothing about compose.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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

    `was_up`: whether every service has answered once; `feature_spec`: the file that its services were started with.
    """

    phase: Phase = "starting"
    supervisor_pid: int = 0
    was_up: bool = False
    message: str = ""
    answered: str = ""
    refused: str = ""
    started_ms: int = 0
    feature_spec: str = ""
    services: dict[str, ServiceState] = field(default_factory=dict)


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
