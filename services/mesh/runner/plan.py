"""Turns the services of a compose file into local processes: interpreters for images, loopback for service names, folders for volumes.

The rules, all of them:
1. `python` at the head of a command is the interpreter of the environment `x-tunemesh.env`; an embedded server has its own command.
2. `SERVICE:PORT` in a value or command becomes `127.0.0.1:` and the loopback port of that service's port; 0.0.0.0 becomes 127.0.0.1.
   A value that names a service which only Docker can run becomes empty: a service without it must do.
3. A path under a volume's target becomes the same path under the run folder's `volumes/NAME`, under the volume's own folder, or under
   the bound folder.
4. A variable of `x-tunemesh.ports` holds the loopback port; the user's TUNEMESH_… variables reach every service, and those from which the
   libraries beneath take credentials (`_HANDED_ON`); compose's values win.
5. `cpu_shares` below the default become a nice value with about the same share of a busy processor; more than that needs rights that the
   runner does not ask for, and counts as the default.
Knows nothing about running processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from services.mesh.runner.compose import DEFAULT_CPU_SHARES, Compose, Condition, HealthCheck, Local, Mount, Restart, Service
from services.mesh.runner.environments import Environments
from services.mesh.runner.run_folder import RUN_DIR_VARIABLE
from services.mesh.runner.settings import MeshSettings

GRPC_PROBE = ("python", "-m", "services.mesh.runner.health")

# Settings of the services, and what object stores, collectors, MLflow and model hubs are unlocked with: addresses hold no passwords.
_HANDED_ON = (
    "TUNEMESH_",
    "AWS_",
    "AZURE_STORAGE_",
    "FSSPEC_",
    "GOOGLE_APPLICATION_",
    "OTEL_EXPORTER_OTLP_",
    "MLFLOW_TRACKING_",
    "HF_TOKEN",
)

ReadyKind = Literal["alive", "exit", "command", "grpc", "broker", "redis", "triton", "mlflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """How to tell that a process is ready: by its exit, a command, a gRPC health check or an embedded server's own sign."""

    kind: ReadyKind
    port: int = 0
    command: tuple[str, ...] = ()
    interval_s: float = 3.0  # once it is ready; a death is seen at once, without asking
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One local process of the mesh. `ports` maps a variable to the loopback port that it moves."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    ready: Ready
    ports: Mapping[str, int]
    depends_on: Mapping[str, Condition]
    restart: Restart
    stop_grace_s: float
    niceness: int = 0
    in_memory_broker: bool = False


class Planner:
    """Makes the processes of one mesh. All folders become absolute; nothing is written but by the embedded servers' preparation."""

    def __init__(
        self,
        compose: Compose,
        services: Mapping[str, Service],
        *,
        settings: MeshSettings,
        environ: Mapping[str, str],
        environments: Environments,
    ) -> None:
        """`services` are those to run, dependencies included; `environ` is the user's environment.

        Attributes: `services` are those that run locally, `external` maps the others to the variable that points at them.
        """
        self._compose, self._settings, self._environ, self._environments = compose, settings, environ, environments
        self._root = compose.path.resolve().parent
        self._run_dir = settings.run_dir.resolve()
        local = {name: service.local for name, service in compose.services.items() if service.local is not None}
        outside = {name: one.external for name, one in local.items() if one.external and environ.get(one.external)}
        self.external = {name: variable for name, variable in outside.items() if name in services}
        self.services = {name: service for name, service in services.items() if name not in outside}
        # Of every service that could run here, running or not: it may be started later, and its clients must know where.
        self._ports = {name: self._ports_of(name, one) for name, one in local.items() if name not in outside}
        self._address = _pattern(set(self._ports))
        self._docker_only = _pattern(set(compose.services) - set(local))

    def processes(self) -> list[Process]:
        """Return the processes, in the order of the compose file.

        Raises:
            ConfigurationError: a port number, command or address makes no sense, or something is not installed.
        """
        seen: dict[int, str] = {}
        for name in self.services:
            for variable, port in self._moved(name).items():
                if port in seen:
                    raise ConfigurationError(f"{variable}={port}: {name} and {seen[port]} would share the port; give them different ones")
                seen[port] = name
        return [self._process(service) for service in self.services.values()]

    def environment_of(self, service: Service) -> dict[str, str]:
        """Return the variables that compose sets for a service, translated for this machine."""
        values = {key: self._localise(value, service) for key, value in service.environment.items()}
        return values | {variable: str(port) for variable, port in self._moved(service.name).items() if variable in values}

    def environment(self, name: str) -> dict[str, str]:
        """Return `environment_of` by the service's name.

        Raises:
            ConfigurationError: the mesh does not know such a service.
        """
        return self.environment_of(self._named(name))

    def address(self, name: str, inside: int | None = None) -> str:
        """Return `127.0.0.1:PORT` of a service, started or not; `inside` is its port in compose, the first one by default.

        Raises:
            ConfigurationError: the mesh does not know such a service, or it has no such port.
        """
        service = self._named(name)
        return f"{embedded.LOOPBACK}:{self._port_of(service, inside if inside is not None else next(iter(self._ports[name]), 0))}"

    @property
    def is_broker_in_memory(self) -> bool:
        """Whether the mesh runs a broker whose log does not survive it."""
        has_broker = any(local.embedded == "broker" for local in _locals(self.services).values())
        return has_broker and self._settings.broker == "tansu"

    def _named(self, name: str) -> Service:
        if name not in self._ports:
            raise ConfigurationError(f"this mesh has no service {name!r}; it has {', '.join(self._ports)}")
        return self._compose.services[name]

    def _process(self, service: Service) -> Process:
        local = _local(service)
        command = self._embedded(service, local) if local.embedded else self._own(service, local)
        return Process(
            name=service.name,
            argv=command.argv,
            env=dict(command.env) | {RUN_DIR_VARIABLE: str(self._run_dir)},
            cwd=command.cwd,
            ready=self._ready(service, local),
            ports=self._moved(service.name),
            depends_on={name: condition for name, condition in service.depends_on.items() if name in self.services},
            restart=service.restart,
            stop_grace_s=service.stop_grace_s,
            niceness=niceness(service.cpu_shares),
            in_memory_broker=local.embedded == "broker" and self._settings.broker == "tansu",
        )

    def _own(self, service: Service, local: Local) -> embedded.Command:
        where = f"{self._compose.path.name}: services.{service.name}.command"
        if local.env is None or service.command[:1] != ("python",):
            raise ConfigurationError(f'{where}: must begin with "python", which the runner replaces by an environment\'s interpreter')
        words = (str(self._environments.python(local.env)), *(self._localise(word, service) for word in service.command[1:]))
        user = {key: value for key, value in self._environ.items() if key.startswith(_HANDED_ON)}
        env = embedded.inherited_environment() | user | {"PYTHONUNBUFFERED": "1"} | self.environment_of(service)
        return embedded.Command(argv=words, env=env, cwd=self._root)

    def _embedded(self, service: Service, local: Local) -> embedded.Command:
        workspace = self._run_dir / "volumes" / service.name
        ports = list(self._moved(service.name).values())
        if local.embedded == "broker":
            if self._settings.broker == "tansu":
                return embedded.broker_command(self._environments, port=ports[0])
            if self._settings.kafka_home is None:
                raise ConfigurationError("TUNEMESH_MESH_BROKER=kafka needs KAFKA_HOME to point at an unpacked Apache Kafka 4")
            return embedded.kafka_command(self._settings.kafka_home, port=ports[0], controller_port=ports[1], data_dir=workspace)
        if local.embedded == "redis":
            return embedded.redis_command(self._environments, port=ports[0], data_dir=workspace, options=service.command[1:])
        if local.embedded == "mlflow":
            return embedded.mlflow_command(self._environments, port=ports[0], data_dir=workspace)
        options = dict(word.split("=", 1) for word in service.command if "=" in word)
        return embedded.triton_command(
            self._environments,
            http_port=self._port_of(service, 8000),
            grpc_port=self._port_of(service, 8001),
            workspace=self._run_dir / "triton",
            models=(options["--load-model"],),
            repository=Path(self._localise(options["--model-repository"], service)),
            env={key: value for key, value in self._environ.items() if key.startswith(_HANDED_ON)} | self.environment_of(service),
        )

    def _ready(self, service: Service, local: Local) -> Ready:
        if local.embedded == "triton":
            return Ready(kind="triton", port=self._port_of(service, 8000))
        if local.embedded is not None:
            return Ready(kind=local.embedded, port=next(iter(self._moved(service.name).values())))
        check = service.healthcheck
        if service.restart == "no":
            return Ready(kind="exit")
        if check is None:
            return Ready(kind="alive")
        if check.command[:3] == GRPC_PROBE:
            return Ready(kind="grpc", port=self._port_of(service, int(check.command[3])))
        return self._command_check(service, local, check)

    def _command_check(self, service: Service, local: Local, check: HealthCheck) -> Ready:
        words = tuple(self._localise(word, service) for word in check.command)
        if words[0] == "python" and local.env is not None:
            words = (str(self._environments.python(local.env)), *words[1:])
        return Ready(kind="command", command=words, interval_s=min(check.interval_s, 2.0), timeout_s=check.timeout_s)

    def _ports_of(self, name: str, local: Local) -> dict[int, tuple[str, int]]:
        found: dict[int, tuple[str, int]] = {}
        inside_ports = list(local.ports.items())
        if local.embedded == "broker" and self._settings.broker == "tansu":
            inside_ports = inside_ports[:1]  # it has no controller
        for inside, variable in inside_ports:
            text = self._environ.get(variable) or self._compose.variables.get(variable) or str(inside)
            if not text.isdigit() or not 0 < int(text) < 65536:
                raise ConfigurationError(f"{variable}={text} of service {name} is no port: use 1 to 65535")
            found[inside] = (variable, int(text))
        return found

    def _moved(self, name: str) -> dict[str, int]:
        return dict(self._ports[name].values())

    def _port_of(self, service: Service, inside: int) -> int:
        if inside not in self._ports[service.name]:
            raise ConfigurationError(f"{self._compose.path.name}: services.{service.name}: x-tunemesh.ports does not name port {inside}")
        return self._ports[service.name][inside][1]

    def _localise(self, value: str, service: Service) -> str:
        for mount in sorted(service.volumes, key=lambda mount: -len(mount.target)):
            if value == mount.target or value.startswith(f"{mount.target}/"):
                return str(self._folder(mount).resolve()) + value.removeprefix(mount.target)
        if self._docker_only.search(value):
            return ""
        replaced = self._address.sub(lambda match: self._loopback(match, service), value)
        return embedded.LOOPBACK if replaced == "0.0.0.0" else replaced

    def _folder(self, mount: Mount) -> Path:
        if not mount.is_named:
            return self._root / mount.source
        return self._root / mount.folder if mount.folder else self._run_dir / "volumes" / mount.source

    def _loopback(self, match: re.Match[str], service: Service) -> str:
        other = self._compose.services[match[1]]
        if int(match[2]) not in self._ports[other.name]:
            where = f"{self._compose.path.name}: services.{service.name}"
            raise ConfigurationError(f"{where}: {match[0]} is no port that services.{other.name}.x-tunemesh.ports names")
        return f"{embedded.LOOPBACK}:{self._port_of(other, int(match[2]))}"


def niceness(cpu_shares: int) -> int:
    """Return the nice value, 0 to 19, that stands for a weight of cgroups.

    Source: kernel/sched/core.c, sched_prio_to_weight: nice 0 weighs 1024 as the default of `cpu_shares` does, each step 1.25 times less.
    """
    return min(19, max(0, round(math.log(DEFAULT_CPU_SHARES / cpu_shares, 1.25))))


def _local(service: Service) -> Local:
    if service.local is None:
        raise ConfigurationError(f"service {service.name} has no x-tunemesh block, so only Docker can run it")
    return service.local


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds NAME:PORT of these services in a value; nothing when there are none."""
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![\w.-])({longest_first or '(?!)'}):(\d+)(?!\d)")


def _locals(services: Mapping[str, Service]) -> dict[str, Local]:
    return {name: _local(service) for name, service in services.items()}
