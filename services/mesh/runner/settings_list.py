"""Lists every setting of the mesh: what `python -m services.mesh settings` prints.

The settings classes are found by convention, `<module>.settings` of each `python -m <module>` in docker-compose.yml: no second list.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from pydantic_settings import BaseSettings

from services.common.platform.settings import variable_of
from services.mesh.runner.compose import Service
from services.mesh.runner.settings import MeshSettings, TopicsSettings


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable."""

    variable: str
    default: str
    meaning: str


def settings_of(services: Iterable[Service]) -> Iterator[tuple[str, list[Setting]]]:
    """Yield (module, its settings) for the runner, the topic job and every service of its own; shared variables come once."""
    known: set[str] = set()
    seen: set[str] = set()
    yield "services.mesh", _new(MeshSettings, known)
    yield "services.mesh topics", _new(TopicsSettings, known)
    for service in services:
        module = service.command[2] if service.command[:2] == ("python", "-m") else "services.mesh"
        # A service and its GPU variant are one module; a job that is a module of a service has shared settings only.
        if module == "services.mesh" or module in seen or not _is_package(module):
            continue
        seen.add(module)
        yield module, _new(_settings_class(module), known)


def _is_package(module: str) -> bool:
    found = find_spec(module)
    return found is not None and found.submodule_search_locations is not None


def _settings_class(module: str) -> type[BaseSettings]:
    """Return the one class in `<module>.settings` that has a prefix of its own."""
    found = [
        value
        for value in vars(importlib.import_module(f"{module}.settings")).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value.model_config.get("env_prefix")
    ]
    (only,) = found
    return only


def _new(cls: type[BaseSettings], known: set[str]) -> list[Setting]:
    settings = []
    for name, field in cls.model_fields.items():
        variable = variable_of(cls, name)
        if variable not in known:
            known.add(variable)
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            settings.append(Setting(variable, "" if default is None else str(default), " ".join((field.description or "").split())))
    return settings
