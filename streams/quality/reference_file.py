"""The file that keeps the references of the quality stream over a restart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from streams.quality.drift import Drift

_log = logging.getLogger(__name__)


def load_reference(path: Path, drift: Drift) -> None:
    """Load a saved reference when there is one.

    Raises:
        ConfigurationError: the file cannot be read, or is no reference.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _log.info("%d references taken from %s", drift.load(raw), path)
    except FileNotFoundError:
        _log.info("%s does not exist yet: references are made of the first windows", path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"TUNEMESH_QUALITY_REFERENCE_PATH={path}: {error}; remove the file to begin with a new reference"
        ) from error


def save_reference(path: Path, drift: Drift) -> None:
    """Replace the file in one step. A disk that refuses is logged, not raised: the reference stays in memory."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(drift.to_json()), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        _log.warning("the reference could not be saved to %s: %s", path, error)
