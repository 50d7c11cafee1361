"""docker-compose.yml against the compose specification, the runner's subset, the declared settings and the processes that really start.

The specification's JSON schema is the one that check-jsonschema 0.39.0 carries (compose-spec, Apache-2.0; SHA-256 below).
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic_settings import BaseSettings

from services.common.platform import settings as common_settings
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import EXIT_BAD_CONFIGURATION, ModelSettings, declared_variables, load_settings
from services.mesh.runner.compose import Compose, Service, selected
from services.mesh.runner.compose_reader import CONTAINER_ONLY, HONOURED, load_compose
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.plan import Planner, Process
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.settings import MeshSettings, TopicsSettings
from tests.limits import seconds

COMPOSE_FILE = REPOSITORY_ROOT / "docker-compose.yml"
MODEL_FILE = REPOSITORY_ROOT / "model_repo" / "ranker" / "1" / "model.py"
OWN_VARIABLE = re.compile(r"TUNEMESH_[A-Z0-9_]+|KAFKA_BOOTSTRAP_SERVERS|REDIS_URL|TRITON_URL|OTEL_EXPORTER_OTLP_ENDPOINT")

SCHEMA_SHA256 = "d549057ebc2925f39f62799eab0db7b9e2c18b35b6c00595199116da3ed10e64"

# Inherited with a group of settings that the service uses otherwise.
NOT_USED = {
    "trainer": {"TUNEMESH_TABLES_DIR"},
    "recommender": {"TUNEMESH_ARTIFACTS_URL"},
    "prompt_assembler": {"TUNEMESH_TABLES_DIR"},
    "retriever": {"TUNEMESH_LLM_MODEL"},
    "embedder": {"TUNEMESH_LLM_MODEL"},
}
# Modules of a service that run as jobs, and what they read.
JOBS: dict[str, type[BaseSettings]] = {
    "services.mesh": TopicsSettings,
    "services.llm.weights": ModelSettings,
    "services.retriever.export_embedder": ModelSettings,
}
# Their images hold nothing that could ask: no shell, no HTTP client.
WITHOUT_HEALTH_CHECK = {"otel-collector"}
GPU_VARIANTS = {"triton-gpu": "triton", "llm-gpu": "llm", "tuner-gpu": "tuner"}


@functools.cache
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
    if module in JOBS:
        return JOBS[module]
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


def compose_schema() -> dict[str, Any]:
    """The vendored file of check-jsonschema, found without importing the package."""
    spec = importlib.util.find_spec("check_jsonschema")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / "compose-spec.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SCHEMA_SHA256, "another version of the specification: look at it, then note it"
    return dict(json.loads(path.read_text()))


def test_the_file_is_valid_under_the_compose_specification() -> None:
    schema = compose_schema()
    document = yaml.safe_load(COMPOSE_FILE.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)] == []
    document["services"]["router"]["memory"] = "1g"
    assert [error.json_path for error in validator.iter_errors(document)] == ["$.services.router"]


def test_the_mesh_is_complete() -> None:
    names = set(compose().services)
    assert {"kafka", "redis", "triton", "mlflow", "otel-collector", "jaeger", "prometheus", "grafana"} <= names
    started = {service.command[2] for service in own_services()}
    programs = [path.parent for folder in ("services", "streams") for path in (REPOSITORY_ROOT / folder).rglob("__main__.py")]
    assert {".".join(path.relative_to(REPOSITORY_ROOT).parts) for path in programs} | set(JOBS) == started
    local = set(selected(compose()))
    builders = {name for name, service in raw_services().items() if "build" in service}
    assert names - local == {*GPU_VARIANTS, *builders, "tunemesh", "otel-collector", "jaeger", "prometheus", "grafana"}


def test_the_table_of_services_has_a_row_for_every_process_with_its_port_and_environment() -> None:
    lines = (REPOSITORY_ROOT / "services" / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {name.strip(): row for row in cells for name in row[0].split(",")}
    for service in own_services():
        if "port" not in settings_class(service).model_fields:
            continue
        assert service.local is not None
        row = rows[service.name]
        assert set(re.findall(r"\b\d{5}\b", row[1])) == {str(port) for port in service.local.ports}, service.name
        assert row[-1] == service.local.env, service.name


def test_a_gpu_variant_is_the_same_service_under_the_same_address_on_a_device_by_setting() -> None:
    raw = raw_services()
    for variant, name in GPU_VARIANTS.items():
        gpu, cpu = raw[variant], raw[name]
        assert (gpu["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
        for key in ("command", "environment", "healthcheck", "volumes", "ports"):
            assert gpu.get(key) == cpu.get(key), f"{variant}: {key}"
        builders = {f"image-{service['image'].split('/')[1].partition(':')[0]}" for service in (gpu, cpu)}
        assert {k: v for k, v in gpu["depends_on"].items() if k not in builders} == {
            k: v for k, v in cpu["depends_on"].items() if k not in builders
        }, variant
        assert gpu["networks"] == {"default": {"aliases": [name]}}
        [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [f"${{TUNEMESH_{name.upper()}_GPU_DEVICE:-0}}"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert "x-tunemesh" not in gpu


def test_the_adapter_api_is_reachable_inside_the_network_only() -> None:
    for name in ("llm", "llm-gpu"):
        assert "50059" not in str(raw_services()[name]["ports"])


def test_every_file_that_compose_mounts_is_in_the_repository() -> None:
    """Docker makes what is missing, as root, and the user's own commands cannot write there any more."""
    mounted = [mount.source for service in compose().services.values() for mount in service.volumes if not mount.is_named]
    assert [source for source in mounted if not (REPOSITORY_ROOT / source).exists()] == []


def test_every_image_is_pinned_to_a_version() -> None:
    for name, service in raw_services().items():
        images = [service["image"], *[value for key, value in service.get("build", {}).get("args", {}).items() if key == "BASE_IMAGE"]]
        for image in images:
            repository, _, tag = image.rpartition(":")
            assert repository, f"{name}: {image} has no tag"
            assert re.search(r"\d+\.\d+", tag), f"{name}: {image} is not pinned to a version"


def test_the_image_makes_the_folder_of_every_volume_for_its_user() -> None:
    """A named volume takes the owner of the folder that the image has at its place; without one it belongs to root."""
    dockerfile = (REPOSITORY_ROOT / "services" / "Dockerfile").read_text()
    match = re.search(r"for folder in ([a-z ]+); do install -d -o 10001 /var/lib/tunemesh/\$folder", dockerfile)
    assert match is not None
    own = [service for service in compose().services.values() if service.image.startswith("tunemesh/")]
    volumes = {mount.target for service in own for mount in service.volumes if mount.is_named}
    assert volumes == {f"/var/lib/tunemesh/{folder}" for folder in match[1].split()}


def test_every_image_of_the_dockerfile_is_pinned_too() -> None:
    dockerfile = (REPOSITORY_ROOT / "services" / "Dockerfile").read_text()
    images = re.findall(r"^(?:FROM|ARG BASE_IMAGE=)\s*([^\s$]+:[^\s]+)", dockerfile, re.MULTILINE)
    assert len(images) >= 2
    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+", image)] == []


def test_every_port_is_published_on_loopback_only() -> None:
    published = [(name, port) for name, service in raw_services().items() for port in service.get("ports", [])]
    assert published
    assert [entry for entry in published if not entry[1].startswith("127.0.0.1:")] == []


def test_every_long_running_service_has_a_health_check_a_memory_limit_and_is_restarted() -> None:
    for name, service in raw_services().items():
        assert "mem_limit" in service, name
        if service["restart"] == "no":
            continue
        assert ("healthcheck" in service) != (name in WITHOUT_HEALTH_CHECK), name
        assert service["restart"] == "unless-stopped", name


def test_the_tables_are_one_volume_in_memory_that_writer_and_readers_share() -> None:
    volume = yaml.safe_load(COMPOSE_FILE.read_text())["volumes"]["tables"]
    assert volume["driver_opts"]["type"] == "tmpfs"
    sharing = {
        name: service.environment["TUNEMESH_TABLES_DIR"]
        for name, service in compose().services.items()
        if "TUNEMESH_TABLES_DIR" in service.environment
    }
    assert set(sharing) == {"updater", "triton", "triton-gpu", "recommender"}
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
        prefix = str(settings_class(service).model_config.get("env_prefix") or "-")
        shared = {name for name in declared_variables(settings_class(service)) if not name.startswith(prefix)}
        assert shared - set(service.environment) <= NOT_USED.get(service.name, set()), service.name


def test_ports_in_compose_are_the_settings_own_defaults() -> None:
    for service in own_services():
        cls = settings_class(service)
        if "port" not in cls.model_fields:
            continue
        assert service.local is not None
        fields = {declared_variables(cls).get(variable): inside for inside, variable in service.local.ports.items()}
        assert {name: cls.model_fields[name].default for name in fields if name} == fields, service.name
        assert fields.keys() == {name for name in cls.model_fields if name == "port" or name.endswith("_port")}, service.name
        for inside, variable in service.local.ports.items():
            assert service.environment[variable] == str(inside), service.name
        assert service.healthcheck is not None
        assert service.healthcheck.command == ("python", "-m", "services.mesh.runner.health", str(fields["port"])), service.name


def test_the_runner_starts_the_same_commands_with_the_same_variables(processes: dict[str, Process]) -> None:
    for service in own_services():
        process = processes[service.name]
        assert process.argv[1:] == service.command[1:]
        assert set(service.environment) <= set(process.env)
        assert process.cwd == REPOSITORY_ROOT
        for key, value in process.env.items():
            assert not re.search(rf"(?<![\w.-])({'|'.join(compose().services)}):\d", value), (
                f"{service.name}: {key}={value} names a container"
            )
            assert not value.startswith(("/var/lib/tunemesh", "/app/")), f"{service.name}: {key}={value} is a container's path"


def test_unknown_keys_are_refused_and_the_stated_subset_has_no_key_twice(tmp_path: Path) -> None:
    assert frozenset() == HONOURED & CONTAINER_ONLY
    text = COMPOSE_FILE.read_text().replace("  router:\n", "  router:\n    deploy: { replicas: 2 }\n")
    (tmp_path / "docker-compose.yml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"services\.router\.deploy\.replicas: unknown key 'replicas'"):
        load_compose(tmp_path / "docker-compose.yml", {})


def start(process: Process, **env: str) -> subprocess.CompletedProcess[str]:
    # This checkout's code and contracts, also where the environment was made for another one.
    ours = {"PYTHONPATH": f"{REPOSITORY_ROOT}:{REPOSITORY_ROOT / 'protos' / 'gen'}"}
    return subprocess.run(
        process.argv, env={**process.env, **ours, **env}, cwd=process.cwd, capture_output=True, text=True, timeout=seconds(120), check=False
    )


def errors_of(process: Process, cls: type[BaseSettings]) -> list[str]:
    """Start a service with a wrong value; return what was wrong with its answer."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    if not prefix:
        return []  # a job with shared settings only: any text is a name or a folder
    variable = f"{prefix}{'SHARDS' if cls is TopicsSettings else 'PORT'}"
    done = start(process, **{variable: "not-a-number"})
    lines = done.stderr.strip().splitlines()
    if done.returncode == EXIT_BAD_CONFIGURATION and len(lines) == 1 and variable in lines[0]:
        return []
    return [f"{process.name} with {variable}=not-a-number: exit code {done.returncode}, stderr {done.stderr[-600:]!r}"]


def test_every_service_refuses_a_misspelt_variable() -> None:
    for service in own_services():
        cls = settings_class(service)
        prefix = str(cls.model_config.get("env_prefix", ""))
        if prefix:
            with pytest.raises(ConfigurationError, match=f"{prefix}PROT names no setting"):
                load_settings(cls, {f"{prefix}PROT": "1"})


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
    # It is not started again once it has said so. A start before that may fail for want of time, on a machine that is very busy.
    log = RunFolder(tmp_path).log("triton").read_text(encoding="utf-8", errors="replace")
    assert len(re.findall("^error: creating server: .*configuration error", log, flags=re.MULTILINE)) == 1


def test_an_embedded_server_answers_a_wrong_port_with_one_line_before_anything_starts(tmp_path: Path) -> None:
    loaded = compose()
    embedded = [service for service in loaded.services.values() if service.local and service.local.embedded]
    assert {service.name for service in embedded} == {"kafka", "redis", "triton", "mlflow"}
    for service in embedded:
        assert service.local is not None
        variable = next(iter(service.local.ports.values()))
        done = subprocess.run(
            [str(Environments.of_repository().python("light")), "-m", "services.mesh", "up", "--run-dir", str(tmp_path)],
            env={**os.environ, variable: "70000"},
            cwd=REPOSITORY_ROOT,
            capture_output=True,
            text=True,
            timeout=seconds(60),
            check=False,
        )
        assert done.returncode == EXIT_BAD_CONFIGURATION
        assert done.stderr == f"configuration error: {variable}=70000 of service {service.name} is no port: use 1 to 65535\n"
