"""The operator's commands as typed: nothing but the run folder tells them where the mesh is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from services.mesh.runner.environments import REPOSITORY_ROOT


class CommandFailed(AssertionError):
    """It ended with another exit code than 0; the text is what it said."""


def tunemesh(run_dir: Path, *words: str) -> Any:
    """Run a command with --json and return its document; CommandFailed says why there is none."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_"))}
    command = [sys.executable, "-m", "services.mesh", *words, "--json", "--run-dir", str(run_dir)]
    done = subprocess.run(command, env=env, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        raise CommandFailed(done.stderr)
    return json.loads(done.stdout)
