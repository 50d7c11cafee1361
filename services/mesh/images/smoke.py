"""Imports everything that an image runs: the last step of each build.

    python -m services.mesh.images.smoke light [--installed requirements.lock [--on-slim-base [DEBIAN_PACKAGE ...]]]

Of every module of the family, the module itself and what it imports anywhere in its text, inside functions too: a service imports vLLM or
a Kafka codec on use, and would find out in production that it is not there, or that generated code refuses its protobuf. With
`--installed` the shared libraries of the packages that the lock file names must be there as well. Exit code 1 names all that is missing.
Knows nothing about containers.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.mesh.images.libraries import OF_DEBIAN, SLIM_BASE, of_distributions, unresolved


@dataclass(frozen=True, slots=True)
class Family:
    """What the services of one image are made of.

    Attributes:
        packages: packages and modules, with all below them.
        without: those below them that another family runs.
        files: scripts beside the packages, relative to the image's working directory.
        provided: modules that the image's own server has, and nobody else.
    """

    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    provided: tuple[str, ...] = ()


_OWN = ("services.", "streams.")
_LIGHT_SERVICES = ("feedback_collector", "mesh", "prompt_assembler", "recommender", "retriever", "router")
FAMILIES = {
    "light": Family(
        packages=("tunemesh", "services.common", "streams", *(f"services.{name}" for name in _LIGHT_SERVICES)),
        without=("services.common.ranker.networks", "services.common.platform.mlflow_server", "services.retriever.export_embedder"),
    ),
    "ml": Family(
        packages=(
            "tunemesh",
            "services.llm",
            "services.trainer",
            "services.tuner",
            "services.retriever.export_embedder",
            "services.mesh.runner.health",
            "services.mesh.images.smoke",
        ),
    ),
    "triton": Family(
        packages=("services.common.ranker", "services.mesh.images.smoke"),
        files=("model_repo/ranker/1/model.py",),
        provided=("triton_python_backend_utils",),
    ),
}


def modules_of(family: Family) -> list[str]:
    """Return the names of a family's modules; imports the packages on the way to them.

    Raises:
        ImportError: a package is not there or does not load.
    """
    found: list[str] = []
    for package in family.packages:
        module = importlib.import_module(package)
        found.append(package)
        for below in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{package}."):
            # Importing a __main__ of ours does nothing: it looks at its __name__.
            if not any(below.name == name or below.name.startswith(f"{name}.") for name in family.without):
                found.append(below.name)
    return found


def imports_of(source: str, *, package: str = "") -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each import of a text; the name is empty where a whole module is imported.

    Args:
        source: of a Python file.
        package: what `from . import x` is relative to.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield from ((base, alias.name) for alias in node.names)


def problems_of(family: Family, root: Path) -> list[str]:
    """Import all that a family runs; return what failed, one line each, none twice."""
    problems: dict[str, None] = {}
    seen: set[str] = set()
    pending = modules_of(family)
    texts = [((root / file).read_text(encoding="utf-8"), "", file) for file in family.files]
    while pending or texts:
        if pending:
            name = pending.pop()
            problems |= dict.fromkeys(_import(name, "", by="the image"))
            texts += _text_of(name)
            continue
        text, package, by = texts.pop()
        for module, name in imports_of(text, package=package):
            whole = f"{module}.{name}".rstrip(".")
            if whole in seen or module in family.provided or any(whole.startswith(other) for other in family.without):
                continue
            seen.add(whole)
            problems |= dict.fromkeys(_import(module, name, by=by))
            pending += [one for one in (module, whole) if one.startswith(_OWN) and one in sys.modules and one not in seen]
            seen.add(module)
    return list(problems)


def _text_of(name: str) -> list[tuple[str, str, str]]:
    """Return (source, package, name) of a module of ours; nothing for generated code, which imports what it needs at its head."""
    spec = find_spec(name) if name in sys.modules else None
    if spec is None or spec.origin is None or not name.startswith(_OWN):
        return []
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    return [(Path(spec.origin).read_text(encoding="utf-8"), package, name)]


def _import(module: str, name: str, *, by: str) -> list[str]:
    try:
        loaded = importlib.import_module(module)
        if name and name != "*" and not hasattr(loaded, name):
            importlib.import_module(f"{module}.{name}")
    except Exception as error:  # noqa: BLE001 - a package may raise anything when it loads; each failure becomes a line
        return [f"{by} imports {module}{f'.{name}' if name else ''}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"]
    return []


def _without_library(lock: Path, debian: list[str] | None) -> list[str]:
    try:
        names = [line.partition("==")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    except OSError as error:
        raise ConfigurationError(f"--installed {lock}: {error.strerror}") from error
    available = None if debian is None else SLIM_BASE | {OF_DEBIAN.get(package, package) for package in debian}
    found = unresolved(of_distributions(names), available)
    return [f"{file} needs {library}, which is not here" for file, library in found]


def main(argv: list[str] | None = None) -> int:
    """Check one family; return the exit code."""
    parser = argparse.ArgumentParser(prog="smoke", description="Import everything that an image runs.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--installed", type=Path, help="lock file: the shared libraries of its packages must be there")
    parser.add_argument(
        "--on-slim-base", nargs="*", metavar="DEBIAN_PACKAGE", help="as if this system were the slim base and these packages"
    )
    arguments = parser.parse_args(argv)
    problems = problems_of(FAMILIES[arguments.family], Path.cwd())
    if arguments.installed is not None:
        problems += _without_library(arguments.installed, arguments.on_slim_base)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{arguments.family}: {len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
