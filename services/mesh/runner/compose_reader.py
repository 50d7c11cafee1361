"""Reads docker-compose.yml: the subset that the runner understands, and the `x-tunemesh` block that says how to run a service locally.

Whatever the runner would not honour is an error that names it, but for keys that only matter inside a container (`CONTAINER_ONLY`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.compose import DEFAULT_CPU_SHARES, Compose, Condition, Embedded, HealthCheck, Local, Mount, Restart, Service
from services.mesh.runner.environments import EnvironmentName

# Meaningful inside containers only: read, and left to Docker.
CONTAINER_ONLY = frozenset(
    {"image", "build", "pull_policy", "entrypoint", "ports", "mem_limit", "shm_size", "init", "tmpfs", "cpus", "deploy", "networks"}
)
HONOURED = frozenset(
    {
        "command",
        "environment",
        "depends_on",
        "healthcheck",
        "volumes",
        "restart",
        "stop_grace_period",
        "cpu_shares",
        "profiles",
        "x-tunemesh",
    }
)

_REFERENCE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<other>.?))")
_DURATION = re.compile(r"(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?")


def load_compose(path: Path, environ: Mapping[str, str]) -> Compose:
    """Read a compose file.

    Args:
        path: the file.
        environ: values of the `${VARIABLE}` references; `${NAME:-default}` falls back when NAME is unset or empty.
    Raises:
        ConfigurationError: unreadable, outside the subset, or a reference without value. One line that names the place.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} does not exist: run from the repository's root or name the file with --file") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    reader = _Reader(path, environ)
    return reader.compose(document)


class _Reader:
    """Walks the document; every complaint names the file and the path inside it."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path, self._environ = path, environ
        self._variables: dict[str, str] = {}
        self._folders: dict[str, str | None] = {}

    def compose(self, document: Any) -> Compose:
        top = self._mapping(document, "")
        self._only(top, {"name", "services", "volumes", "x-"}, "")
        for name, body in self._mapping(top.get("volumes") or {}, "volumes").items():
            self._folders[name] = self._folder(self._mapping(body or {}, f"volumes.{name}"), f"volumes.{name}.x-tunemesh")
        services = {
            name: self._service(name, self._mapping(body, f"services.{name}"))
            for name, body in self._mapping(top.get("services"), "services").items()
        }
        for service in services.values():
            for other in service.depends_on:
                if other not in services:
                    raise self._error(f"services.{service.name}.depends_on", f"there is no service {other!r}")
        return Compose(path=self._path, services=services, variables=dict(self._variables))

    def _folder(self, volume: Mapping[str, Any], where: str) -> str | None:
        if "x-tunemesh" not in volume:
            return None
        block = self._mapping(volume["x-tunemesh"], where)
        self._only(block, {"folder"}, where)
        return self._text(block.get("folder"), f"{where}.folder")

    def _service(self, name: str, raw: Mapping[str, Any]) -> Service:
        where = f"services.{name}"
        self._only(raw, HONOURED | CONTAINER_ONLY, where)
        body = {key: self._resolve(value, f"{where}.{key}") for key, value in raw.items()}
        environment = self._mapping(body.get("environment") or {}, f"{where}.environment")
        depends_on = self._mapping(body.get("depends_on") or {}, f"{where}.depends_on")
        self._only_devices(body.get("deploy") or {}, f"{where}.deploy")
        return Service(
            name=name,
            image=str(body.get("image", "")),
            command=self._words(body.get("command") or [], f"{where}.command"),
            environment={key: self._text(value, f"{where}.environment.{key}") for key, value in environment.items()},
            depends_on=self._depends_on(depends_on, f"{where}.depends_on"),
            optional=frozenset(other for other, one in depends_on.items() if one.get("required") is False),
            healthcheck=self._healthcheck(body.get("healthcheck"), f"{where}.healthcheck"),
            volumes=tuple(self._mount(mount, f"{where}.volumes") for mount in body.get("volumes") or []),
            restart=self._one_of(body.get("restart", "no"), Restart, f"{where}.restart"),
            stop_grace_s=self._seconds(body.get("stop_grace_period", "10s"), f"{where}.stop_grace_period"),
            cpu_shares=self._shares(body.get("cpu_shares", DEFAULT_CPU_SHARES), f"{where}.cpu_shares"),
            profiles=self._words(body.get("profiles") or [], f"{where}.profiles"),
            local=self._local(body["x-tunemesh"], f"{where}.x-tunemesh") if "x-tunemesh" in body else None,
        )

    def _local(self, value: Any, where: str) -> Local:
        body = self._mapping(value, where)
        self._only(body, {"env", "embedded", "ports", "external"}, where)
        if ("env" in body) == ("embedded" in body):
            raise self._error(where, "needs exactly one of env (light or ml) and embedded (broker, redis, triton or mlflow)")
        ports = self._mapping(body.get("ports") or {}, f"{where}.ports")
        if not all(str(port).isdigit() for port in ports):
            raise self._error(f"{where}.ports", f"maps a port number to a variable, not {dict(ports)!r}")
        return Local(
            env=self._one_of(body["env"], EnvironmentName, f"{where}.env") if "env" in body else None,
            embedded=self._one_of(body["embedded"], Embedded, f"{where}.embedded") if "embedded" in body else None,
            ports={int(port): str(variable) for port, variable in ports.items()},
            external=str(body["external"]) if "external" in body else None,
        )

    def _only_devices(self, value: Any, where: str) -> None:
        """A GPU is for the container to reserve; replicas and limits of `deploy` would not be honoured."""
        for key in ("resources", "reservations"):
            self._only(self._mapping(value, where), {key}, where)
            value, where = value.get(key) or {}, f"{where}.{key}"
        self._only(self._mapping(value, where), {"devices"}, where)

    def _depends_on(self, value: Mapping[str, Any], where: str) -> dict[str, Condition]:
        found: dict[str, Condition] = {}
        for name, body in value.items():
            self._only(self._mapping(body, f"{where}.{name}"), {"condition", "required"}, f"{where}.{name}")
            if not isinstance(body.get("required", True), bool):
                raise self._error(f"{where}.{name}.required", f"must be true or false, not {body['required']!r}")
            found[name] = self._one_of(body.get("condition"), Condition, f"{where}.{name}.condition")
        return found

    def _healthcheck(self, value: Any, where: str) -> HealthCheck | None:
        if value is None:
            return None
        body = self._mapping(value, where)
        self._only(body, {"test", "interval", "timeout", "retries", "start_period"}, where)
        test = self._words(body.get("test"), f"{where}.test")
        if len(test) < 2 or test[0] not in ("CMD", "CMD-SHELL"):
            raise self._error(f"{where}.test", 'must be a list that begins with "CMD" or "CMD-SHELL"')
        return HealthCheck(
            command=test[1:] if test[0] == "CMD" else ("/bin/sh", "-c", test[1]),
            interval_s=self._seconds(body.get("interval", "30s"), f"{where}.interval"),
            timeout_s=self._seconds(body.get("timeout", "30s"), f"{where}.timeout"),
            start_period_s=self._seconds(body.get("start_period", "0s"), f"{where}.start_period"),
            retries=int(body.get("retries", 3)),
        )

    def _mount(self, value: Any, where: str) -> Mount:
        source, colon, rest = self._text(value, where).partition(":")
        target = rest.removesuffix(":ro")
        if not colon or not target.startswith("/"):
            raise self._error(where, f"{value!r} is not SOURCE:/TARGET or SOURCE:/TARGET:ro")
        is_named = not source.startswith((".", "/"))
        if is_named and source not in self._folders:
            raise self._error(where, f"volume {source!r} is not declared under volumes")
        return Mount(source=source, target=target, is_named=is_named, folder=self._folders.get(source))

    def _resolve(self, value: Any, where: str) -> Any:
        """Put variables into every string of a tree."""
        if isinstance(value, str):
            return _REFERENCE.sub(lambda match: self._reference(match, where), value)
        if isinstance(value, list):
            return [self._resolve(item, where) for item in value]
        if isinstance(value, dict):
            return {key: self._resolve(item, f"{where}.{key}") for key, item in value.items()}
        return value

    def _reference(self, match: re.Match[str], where: str) -> str:
        if match["escaped"]:
            return "$"
        if match["name"] is None:
            raise self._error(where, f"{match[0]!r} is no reference: the runner reads ${{NAME}}, ${{NAME:-default}} and $$")
        value = self._environ.get(match["name"]) or match["default"]
        if value is None:
            raise self._error(where, f"variable {match['name']} is not set, and it has no default: set it")
        self._variables[match["name"]] = value
        return value

    def _only(self, body: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
        for key in body:
            if key not in known and not ("x-" in known and str(key).startswith("x-")):
                raise self._error(f"{where}.{key}".lstrip("."), f"unknown key {key!r}; here the runner reads {', '.join(sorted(known))}")

    def _mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(where or "the file", f"must be a mapping, not {type(value).__name__}")
        return value

    def _words(self, value: Any, where: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._error(where, "must be a list of words (the form that needs no shell)")
        return tuple(self._text(word, where) for word in value)

    def _text(self, value: Any, where: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._error(where, f"must be text or a number, not {value!r}; put it in quotes")
        return str(value)

    def _one_of(self, value: Any, choices: Any, where: str) -> Any:
        if value not in get_args(choices):
            raise self._error(where, f"must be one of {', '.join(get_args(choices))}, not {value!r}")
        return value

    def _seconds(self, value: Any, where: str) -> float:
        match = _DURATION.fullmatch(str(value))
        if match is None or not any(match.groups()):
            raise self._error(where, f"{value!r} is no duration such as 500ms, 5s or 1m30s")
        return int(match["m"] or 0) * 60.0 + float(match["s"] or 0) + int(match["ms"] or 0) / 1000.0

    def _shares(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 262_144:
            raise self._error(
                where, f"must be a whole number from 2 to 262144 (without it a service has {DEFAULT_CPU_SHARES}), not {value!r}"
            )
        return value

    def _error(self, where: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path.name}: {where}: {what}")
