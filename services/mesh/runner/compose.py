"""The services of a compose file, as the runner understands them: which to run, and in which order.

Of the profiles the runner runs `cpu`; a service without an `x-tunemesh` block is left to Docker.
`compose_reader` makes these objects of docker-compose.yml; `plan` turns them into local commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.environments import EnvironmentName

Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]
Restart = Literal["no", "always", "on-failure", "unless-stopped"]
Embedded = Literal["broker", "redis", "triton", "mlflow"]

RUNNER_PROFILE = "cpu"
DEFAULT_CPU_SHARES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """When a service counts as healthy: the `CMD` form of compose's test, and its times in seconds."""

    command: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One volume of a service: a named volume, or a path relative to the compose file, and where the container sees it.

    Attributes:
        folder: for a named volume, the folder beside the compose file that stands for it and outlives the run (`x-tunemesh.folder`).
    """

    source: str
    target: str
    is_named: bool
    folder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The `x-tunemesh` block.

    Attributes:
        env: environment whose Python replaces `python` in the command; None for an embedded server.
        embedded: which pip-installed server stands for the image; None for a service of ours.
        ports: port inside the mesh's network -> variable that moves the loopback port.
        external: variable that points at a server outside the mesh; when it is set the service is not started.
    """

    env: EnvironmentName | None = None
    embedded: Embedded | None = None
    ports: Mapping[int, str] = field(default_factory=dict)
    external: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service as compose describes it, variables already put in."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    depends_on: Mapping[str, Condition] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()  # those of depends_on that need not be there (`required: false`)
    healthcheck: HealthCheck | None = None
    volumes: tuple[Mount, ...] = ()
    restart: Restart = "no"
    stop_grace_s: float = 10.0
    cpu_shares: int = DEFAULT_CPU_SHARES
    profiles: tuple[str, ...] = ()
    local: Local | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """A compose file: its services by name, in the file's order, and every `${VARIABLE}` that it uses with the value taken."""

    path: Path
    services: Mapping[str, Service]
    variables: Mapping[str, str]


def start_order(services: Mapping[str, Service]) -> list[str]:
    """Return the names so that each stands after all that it depends on; ties keep the file's order.

    Raises:
        ConfigurationError: the dependencies form a circle.
    """
    order: list[str] = []
    waiting = dict(services)
    while waiting:
        ready = [name for name, service in waiting.items() if not any(other in waiting for other in service.depends_on)]
        if not ready:
            raise ConfigurationError(f"depends_on forms a circle among {', '.join(sorted(waiting))}")
        order += ready
        for name in ready:
            del waiting[name]
    return order


def selected(compose: Compose, names: tuple[str, ...] = ()) -> dict[str, Service]:
    """Return the services to run: all that the runner can, or `names`, in both cases with everything that they depend on.

    The runner can run a service that has an x-tunemesh block and no profile, or the profile `cpu`. An optional dependency that it
    cannot run is left out.

    Raises:
        ConfigurationError: a name that the file does not have, or a needed service without an x-tunemesh block.
    """
    unknown = [name for name in names if name not in compose.services]
    if unknown:
        raise ConfigurationError(f"{compose.path.name} has no service {unknown[0]!r}; it has {', '.join(compose.services)}")
    wanted = set(names) or {name for name, service in compose.services.items() if _is_runnable(service)}
    pending = list(wanted)
    while pending:
        service = compose.services[pending.pop()]
        for other in service.depends_on:
            if other not in wanted and (other not in service.optional or _is_runnable(compose.services[other])):
                wanted.add(other)
                pending.append(other)
    for name in sorted(wanted):
        if compose.services[name].local is None:
            raise ConfigurationError(f"{compose.path.name}: services.{name}: has no x-tunemesh block, so only Docker can run it")
    return {name: compose.services[name] for name in compose.services if name in wanted}


def _is_runnable(service: Service) -> bool:
    return service.local is not None and (not service.profiles or RUNNER_PROFILE in service.profiles)
