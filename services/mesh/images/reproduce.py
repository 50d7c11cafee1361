"""Makes an image's package set in a plain virtual environment, without a container engine, and checks it as the image's build does.

    .venv/light/bin/python -m services.mesh.images.reproduce light [--folder build/images]

The wheel, the lock file and torch as in services/Dockerfile; then everything is imported from the wheel, outside this tree, and each
shared library that a package needs must be in a package, in the slim base image, or installed by the Dockerfile: what this machine
happens to have does not count.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from services.mesh.images.smoke import FAMILIES
from services.mesh.runner.environments import REPOSITORY_ROOT

_APT = re.compile(r"apt-get install -y --no-install-recommends ([a-z0-9 .+-]+?) &&")
_FAMILY_STEP = re.compile(r'^RUN if \[ "\$FAMILY" = (\w+) \]; then (.+?); fi$', re.MULTILINE)


def apt_packages(dockerfile: str, family: str) -> list[str]:
    """Return what the Dockerfile installs from Debian for one family."""
    steps = [step for name, step in _FAMILY_STEP.findall(dockerfile) if name == family]
    return [package for step in steps for found in _APT.findall(step) for package in found.split()]


def main(argv: list[str] | None = None) -> int:
    """Reproduce one image; return the exit code of its check."""
    parser = argparse.ArgumentParser(prog="reproduce", description="Make an image's package set in a virtual environment and check it.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--folder", type=Path, default=REPOSITORY_ROOT / "build" / "images", help="where the environments are made")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve() / arguments.family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lock = REPOSITORY_ROOT / f"requirements-{arguments.family}.lock"
    _run(sys.executable, "-m", "venv", "venv", cwd=folder)
    pip = (str(folder / "venv" / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", str(REPOSITORY_ROOT), cwd=folder)
    fit = str(REPOSITORY_ROOT / "services" / "mesh" / "images" / "fit.py")
    missing = folder / "missing.lock"
    missing.write_text(subprocess.run([pip[0], fit, str(lock)], capture_output=True, text=True, check=True).stdout, encoding="utf-8")
    _run(*pip, "install", "--no-deps", "-r", str(missing), cwd=folder)
    torch = [line for line in missing.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    if torch:
        _run(*pip, "install", "-c", str(lock), *torch, cwd=folder)
    _run(*pip, "install", "--no-deps", *map(str, (folder / "wheels").glob("*.whl")), cwd=folder)
    shutil.copytree(REPOSITORY_ROOT / "model_repo", folder / "model_repo")
    packages = apt_packages((REPOSITORY_ROOT / "services" / "Dockerfile").read_text(encoding="utf-8"), arguments.family)
    smoke = (str(folder / "venv" / "bin" / "python"), "-m", "services.mesh.images.smoke", arguments.family, "--installed", str(missing))
    return _status(*smoke, "--on-slim-base", *packages, cwd=folder)


def _run(*command: str, cwd: Path) -> None:
    if _status(*command, cwd=cwd):
        raise SystemExit(f"reproduce: {' '.join(command)} failed")


def _status(*command: str, cwd: Path) -> int:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=cwd, env=environ, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
