"""The demo's data and its base: MovieLens split by time, and a base trained on the first part, kept for the next run.

The base is trained by the same command as anyone's own data (`make train`), in the ml environment. Knows nothing of the running mesh.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.movielens import ACTIVE_USERS, Film, Rating, load_films, load_ratings, split_by_time
from services.common.platform.errors import ConfigurationError
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments

BASE_FRACTION = 0.6

_SPEC = "model_repo/ranker/feature_spec.yaml"
# What a base depends on besides the data, the options and the modules that training imports (the base itself names those).
_OTHER_SOURCES = (_SPEC, "requirements-ml.lock")


@dataclass(frozen=True, slots=True)
class Data:
    """The catalogue, the ratings that the base learns from, and the live ones, both in the order of time."""

    films: dict[str, Film]
    base: list[Rating]
    live: list[Rating]

    @property
    def known_users(self) -> set[str]:
        """Users that the base has seen."""
        return {rating.user_id for rating in self.base}


def load(*, base_events: int | None = None) -> Data:
    """Load MovieLens-100K and split it; `base_events` keeps only the last so many ratings of the base (for a quick run)."""
    base, live = split_by_time(load_ratings(), BASE_FRACTION)
    return Data(load_films(), base if base_events is None else base[-base_events:], live)


def train_or_reuse(data: Data, folder: Path, *, log: Path, epochs: int | None = None) -> tuple[Path, bool]:
    """Return the folder of a base for `data`, and whether an earlier run had made it. A base that today's code would not make is replaced.

    Raises:
        ConfigurationError: training failed; names the log.
    """
    # The demo has a held-out part of its own: the live one. People rate films in one sitting, so sessions are overlaid, as the replay does.
    options = ["--active-users", str(ACTIVE_USERS), "--held-out", "0", *([] if epochs is None else ["--epochs", str(epochs)])]
    target = folder / f"base-{_fingerprint(data.base, options)}"
    if is_fresh(target):
        return target, True
    shutil.rmtree(target, ignore_errors=True)
    events = folder / "base_events.csv"
    _write_events(data, events)
    command = [str(Environments.of_repository().python("ml")), "-m", "services.trainer.train"]
    command += ["--data", str(events), "--spec", str(REPOSITORY_ROOT / _SPEC), "--out", str(target), *options]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise ConfigurationError(f"training the base failed with code {done.returncode}; see {log}")
    return target, False


def is_fresh(base: Path, root: Path = REPOSITORY_ROOT) -> bool:
    """Say whether a base is there and every module that its training imported is still what it was."""
    manifest = base / "manifest.json"
    if not manifest.exists():
        return False
    sources = json.loads(manifest.read_text(encoding="utf-8"))["metadata"].get("sources", {})
    return bool(sources) and all(_hash_of(root / path) == digest for path, digest in sources.items())


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _write_events(data: Data, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "kind", "value", "time", "title", "categories"])
        for rating in data.base:
            film = data.films[rating.item_id]
            writer.writerow([rating.user_id, rating.item_id, "rating", rating.stars, rating.time_s, film.title, "|".join(film.categories)])


def _fingerprint(base: Sequence[Rating], options: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((len(base), base[0], base[-1], list(options))).encode())
    for source in _OTHER_SOURCES:
        digest.update((REPOSITORY_ROOT / source).read_bytes())
    return digest.hexdigest()[:12]
