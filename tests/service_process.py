"""Any service as a process of a test, in the environment that it needs. Imports in both environments."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from services.mesh.runner.environments import REPOSITORY_ROOT, EnvironmentName, Environments
from tests.limits import seconds


class Service:
    """`python -m MODULE`, with its output in a file; what it leaves running is killed at the end."""

    def __init__(self, environment: EnvironmentName, module: str, env: Mapping[str, str], log: Path) -> None:
        paths = f"{REPOSITORY_ROOT}{os.pathsep}{REPOSITORY_ROOT / 'protos' / 'gen'}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_", "OTEL_", "MLFLOW_"))}
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(Environments.of_repository().python(environment)), "-m", module],
                env={**clean, "PYTHONPATH": paths, **env},
                cwd=REPOSITORY_ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_ready(self, timeout_s: float = 60.0) -> int:
        """Wait until it is bound; return its port."""
        return self.wait_port(r"READY \S+ \S+:(\d+)$", timeout_s)

    def wait_port(self, said: str, timeout_s: float = 60.0) -> int:
        """Wait until a line of the log matches `said`; return its group, a port."""
        deadline = time.monotonic() + seconds(timeout_s)
        while True:
            match = re.search(said, self.log, flags=re.MULTILINE)
            if match:
                return int(match[1])
            assert self._process.poll() is None and time.monotonic() < deadline, f"{said} is not in the log:\n{self.log}"
            time.sleep(0.1)

    def wait(self, timeout_s: float) -> int:
        """Wait until it has ended; return its exit code."""
        return self._process.wait(seconds(timeout_s))

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; return the exit code."""
        self._process.terminate()
        return self.wait(timeout_s)

    def kill(self) -> None:
        """kill -9, with whatever it started."""
        with contextlib.suppress(ProcessLookupError):  # the whole group has already ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
