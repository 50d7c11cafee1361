"""The operator's commands as typed: nothing but the run folder tells them where the mesh is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from services.mesh.environments import REPOSITORY_ROOT


def tunemesh(run_dir: Path, *words: str) -> Any:
    """Run a command with --json and return its document."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEMESH_", "KAFKA_"))}
    command = [sys.executable, "-m", "services.mesh", *words, "--json", "--run-dir", str(run_dir)]
    done = subprocess.run(command, env=env, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
