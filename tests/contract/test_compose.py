"""docker-compose.yml against the runner's subset, the declared settings and the processes that really start."""

import ast
import importlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from services.common import settings as common_settings
from services.common.errors import ConfigurationError
from services.common.settings import EXIT_BAD_CONFIGURATION, declared_variables, load_settings
from services.mesh.compose import CONTAINER_ONLY, HONOURED, Compose, Service, load_compose, selected
from services.mesh.environments import REPOSITORY_ROOT, Environments
from services.mesh.mesh import Mesh
from services.mesh.plan import Planner, Process
from services.mesh.settings import MeshSettings, TopicsSettings

COMPOSE_FILE = REPOSITORY_ROOT / "docker-compose.yml"
MODEL_FILE = REPOSITORY_ROOT / "model_repo" / "ranker" / "1" / "model.py"
OWN_VARIABLE = re.compile(r"TUNEMESH_[A-Z0-9_]+|KAFKA_BOOTSTRAP_SERVERS|REDIS_URL|TRITON_URL|OTEL_EXPORTER_OTLP_ENDPOINT")

# Inherited with a group of settings that the service uses otherwise.
NOT_USED = {"trainer": {"TUNEMESH_TABLES_DIR"}, "recommender": {"TUNEMESH_ARTIFACTS_URL"}}


def compose() -> Compose:
    return load_compose(COMPOSE_FILE, {})


def raw_services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(COMPOSE_FILE.read_text())["services"]


def own_services() -> list[Service]:
    """The services that run our code as a command of ours."""
    return [service for service in compose().services.values() if service.local and service.local.env]


def settings_class(service: Service) -> type[BaseSettings]:
    """The settings class of a service: the one in `<module>.settings` that has an environment prefix."""
    module = service.command[2]
    if module == "services.mesh":
        return TopicsSettings
    found = [
        value
        for value in vars(importlib.import_module(f"{module}.settings")).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value.model_config.get("env_prefix")
    ]
    assert len(found) == 1, f"{module}.settings has {len(found)} settings classes"
    return found[0]


def ranker_variables() -> set[str]:
    """What the Triton model may read: the mixins of its settings class (the module itself needs torch, so it is parsed, not imported)."""
    classes = [
        node for node in ast.walk(ast.parse(MODEL_FILE.read_text())) if isinstance(node, ast.ClassDef) and node.name == "RankerSettings"
    ]
    assert len(classes) == 1
    return {name for base in classes[0].bases for name in declared_variables(getattr(common_settings, ast.unparse(base)))}


@pytest.fixture
def processes(tmp_path: Path) -> dict[str, Process]:
    loaded = compose()
    environ = {"PATH": os.environ["PATH"]}
    settings = MeshSettings(run_dir=tmp_path / "run", broker="tansu")
    planner = Planner(loaded, selected(loaded), settings=settings, environ=environ, environments=Environments.of_repository())
    return {process.name: process for process in planner.processes()}


def test_the_mesh_is_complete() -> None:
    names = set(compose().services)
    assert {"kafka", "redis", "topics", "triton", "router", "recommender", "updater"} <= names
    assert {"feedback_collector", "trainer", "joiner", "features"} <= names


def test_every_image_is_pinned_to_a_version() -> None:
    for name, service in raw_services().items():
        images = [service["image"], *[value for key, value in service.get("build", {}).get("args", {}).items() if key == "BASE_IMAGE"]]
        for image in images:
            repository, _, tag = image.rpartition(":")
            assert repository, f"{name}: {image} has no tag"
            assert re.search(r"\d+\.\d+", tag), f"{name}: {image} is not pinned to a version"


def test_every_port_is_published_on_loopback_only() -> None:
    published = [(name, port) for name, service in raw_services().items() for port in service.get("ports", [])]
    assert published
    assert [entry for entry in published if not entry[1].startswith("127.0.0.1:")] == []


def test_every_long_running_service_has_a_health_check_a_memory_limit_and_is_restarted() -> None:
    for name, service in raw_services().items():
        assert "mem_limit" in service, name
        if service.get("profiles") or service["restart"] == "no":
            continue
        assert "healthcheck" in service, name
        assert service["restart"] == "unless-stopped", name


def test_the_tables_are_one_volume_in_memory_that_writer_and_readers_share() -> None:
    volume = yaml.safe_load(COMPOSE_FILE.read_text())["volumes"]["tables"]
    assert volume["driver_opts"]["type"] == "tmpfs"
    sharing = {
        name: service.environment["TUNEMESH_TABLES_DIR"]
        for name, service in compose().services.items()
        if "TUNEMESH_TABLES_DIR" in service.environment
    }
    assert set(sharing) == {"updater", "triton", "recommender"}
    assert len(set(sharing.values())) == 1
    for name in sharing:
        assert any(mount.source == "tables" and sharing[name] == mount.target for mount in compose().services[name].volumes), name


def test_every_variable_is_a_declared_setting_of_its_service() -> None:
    for service in own_services():
        declared = declared_variables(settings_class(service))
        unknown = [name for name in service.environment if OWN_VARIABLE.fullmatch(name) and name not in declared]
        assert unknown == [], f"{service.name}: {unknown} are no settings of {settings_class(service).__name__}"


def test_every_variable_of_triton_is_one_that_the_model_reads() -> None:
    variables = {name for name in compose().services["triton"].environment if OWN_VARIABLE.fullmatch(name)}
    assert variables
    assert variables <= ranker_variables()


def test_every_shared_setting_of_a_service_is_set_by_compose() -> None:
    """A service that reads REDIS_URL or TUNEMESH_TABLES_DIR would look for its own loopback default inside a container."""
    for service in own_services():
        shared = {
            name
            for name in declared_variables(settings_class(service))
            if not name.startswith(str(settings_class(service).model_config["env_prefix"]))
        }
        assert shared - set(service.environment) <= NOT_USED.get(service.name, set()), service.name


def test_ports_in_compose_are_the_settings_own_defaults() -> None:
    for service in own_services():
        cls = settings_class(service)
        if "port" not in cls.model_fields:
            continue
        assert service.local is not None
        [(inside, variable)] = service.local.ports.items()
        assert declared_variables(cls).get(variable) == "port", service.name
        assert inside == cls.model_fields["port"].default, service.name
        assert service.environment[variable] == str(inside), service.name
        assert service.healthcheck is not None
        assert service.healthcheck.command == ("python", "-m", "services.mesh.health", str(inside)), service.name


def test_the_runner_starts_the_same_commands_with_the_same_variables(processes: dict[str, Process]) -> None:
    for service in own_services():
        process = processes[service.name]
        assert process.argv[1:] == service.command[1:]
        assert set(service.environment) <= set(process.env)
        assert process.cwd == REPOSITORY_ROOT
        for key, value in process.env.items():
            assert not re.search(r"\b(kafka|redis|triton|recommender):\d", value), f"{service.name}: {key}={value} names a container"
            assert not value.startswith(("/var/lib/tunemesh", "/app/")), f"{service.name}: {key}={value} is a container's path"


def test_unknown_keys_are_refused_and_the_stated_subset_has_no_key_twice(tmp_path: Path) -> None:
    assert frozenset() == HONOURED & CONTAINER_ONLY
    text = COMPOSE_FILE.read_text().replace("  router:\n", "  router:\n    deploy: { replicas: 2 }\n")
    (tmp_path / "docker-compose.yml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"services\.router\.deploy: unknown key 'deploy'"):
        load_compose(tmp_path / "docker-compose.yml", {})


def start(process: Process, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        process.argv, env={**process.env, **env}, cwd=process.cwd, capture_output=True, text=True, timeout=120, check=False
    )


def errors_of(process: Process, cls: type[BaseSettings]) -> list[str]:
    """Start a service with a wrong value, then with a misspelt variable; return what was wrong with its answers."""
    prefix = str(cls.model_config["env_prefix"])
    number = "SHARDS" if cls is TopicsSettings else "PORT"
    cases = {f"{prefix}{number}": "not-a-number", f"{prefix}PROT": "1"}
    wrong = []
    for variable, value in cases.items():
        done = start(process, **{variable: value})
        lines = done.stderr.strip().splitlines()
        if done.returncode != EXIT_BAD_CONFIGURATION or len(lines) != 1 or variable not in lines[0]:
            wrong.append(f"{process.name} with {variable}={value}: exit code {done.returncode}, stderr {done.stderr[-600:]!r}")
    return wrong


@pytest.mark.timeout(600)
def test_every_service_answers_a_wrong_value_with_one_line_and_exit_code_2(processes: dict[str, Process]) -> None:
    pairs = [(processes[service.name], settings_class(service)) for service in own_services()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        wrong = [message for messages in pool.map(lambda pair: errors_of(*pair), pairs) for message in messages]
    assert wrong == []


def test_the_ranker_answers_a_wrong_value_with_one_line_and_ends_triton(tmp_path: Path) -> None:
    settings = load_settings(MeshSettings)
    env = {"TUNEMESH_TELEMETRY_SAMPLE_RATIO": "many"}
    mesh = Mesh(run_dir=tmp_path, env=env, services=("triton",), free_ports=True, settings=settings)
    with pytest.raises(ConfigurationError) as caught:
        mesh.up()
    assert "triton: configuration error: TUNEMESH_TELEMETRY_SAMPLE_RATIO=many: input should be a valid number" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert mesh.restarts() == {"triton": 0}


def test_an_embedded_server_answers_a_wrong_port_with_one_line_before_anything_starts(tmp_path: Path) -> None:
    loaded = compose()
    embedded = [service for service in loaded.services.values() if service.local and service.local.embedded]
    assert {service.name for service in embedded} == {"kafka", "redis", "triton"}
    for service in embedded:
        assert service.local is not None
        variable = next(iter(service.local.ports.values()))
        done = subprocess.run(
            [str(Environments.of_repository().python("light")), "-m", "services.mesh", "up", "--run-dir", str(tmp_path)],
            env={**os.environ, variable: "70000"},
            cwd=REPOSITORY_ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == EXIT_BAD_CONFIGURATION
        assert done.stderr == f"configuration error: {variable}=70000 of service {service.name} is no port: use 1 to 65535\n"
