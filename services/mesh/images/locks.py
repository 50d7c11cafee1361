"""Writes the lock files of one environment: what its images run, and apart from that what development needs beside it.

    .venv/light/bin/python -m services.mesh.images.locks light      requirements-light.lock, requirements-light-dev.lock
    .venv/ml/bin/python -m services.mesh.images.locks ml            requirements-ml.lock, requirements-triton.lock, requirements-ml-dev.lock

`[project.optional-dependencies]` in pyproject.toml names what the code of each image imports; its lock has these and all that they
require, at the versions that are installed. Everything else that is installed (test tools, embedded servers, data of the demo) is the dev
lock's.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.mesh.runner.environments import REPOSITORY_ROOT

# The images of each environment.
IMAGES: Mapping[str, tuple[str, ...]] = {"light": ("light",), "ml": ("ml", "triton")}
_NOT_LOCKED = frozenset({"pip", "tunemesh"})


def closure(roots: Iterable[Requirement], requires: Mapping[str, Sequence[Requirement]]) -> set[str]:
    """Return the canonical names of what the roots need, themselves included; a requirement that is not installed is passed over.

    Args:
        roots: with their extras.
        requires: requirements by canonical name of what is installed; their markers are looked at, with the extras that are asked for.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    pending = [(canonicalize_name(root.name), extra) for root in roots for extra in ("", *root.extras)]
    while pending:
        name, extra = pending.pop()
        if name not in requires or (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for one in requires[name]:
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                pending += [(canonicalize_name(one.name), wanted) for wanted in ("", *one.extras)]
    return found


def roots_of(image: str) -> list[Requirement]:
    """Return what pyproject.toml says that the code of an image imports."""
    project = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["optional-dependencies"][image]]


def split(environment: str) -> dict[str, str]:
    """Return the text of each lock file of the environment that this interpreter runs in, by its name."""
    versions: dict[str, str] = {}
    requires: dict[str, list[Requirement]] = {}
    for one in distributions():
        name = canonicalize_name(one.metadata["Name"])
        if name not in _NOT_LOCKED:
            # A build of a version (`2.13.0+cpu`) is the index's choice.
            versions[name] = f"{one.metadata['Name']}=={one.version.partition('+')[0]}"
            requires[name] = [Requirement(line) for line in one.requires or ()]
    files, run = {}, set[str]()
    for image in IMAGES[environment]:
        names = closure(roots_of(image), requires)
        missing = [str(root) for root in roots_of(image) if canonicalize_name(root.name) not in names]
        if missing:
            raise SystemExit(f"locks: pyproject.toml names {', '.join(missing)} for {image}, which is not installed")
        run |= names
        files[f"requirements-{image}.lock"] = _text(f"What the {image} image runs", [versions[name] for name in names])
    rest = [line for name, line in versions.items() if name not in run]
    files[f"requirements-{environment}-dev.lock"] = _text(f"What development in .venv/{environment} needs beside what the images run", rest)
    return files


def _text(what: str, lines: list[str]) -> str:
    head = f"# {what}, every package of it, installed with --no-deps. Written by `make lock`."
    return "\n".join([head, *sorted(lines, key=lambda line: re.sub(r"[-_.]+", "-", line.lower()))]) + "\n"


if __name__ == "__main__":
    for name, text in split(sys.argv[1]).items():
        (REPOSITORY_ROOT / name).write_text(text, encoding="utf-8")
