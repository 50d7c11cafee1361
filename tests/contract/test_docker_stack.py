"""What only Docker does with docker-compose.yml: who builds which image, limits of memory, restarts, mounts, the operator's commands."""

import importlib
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic_settings import BaseSettings
from tunemesh.llm.v1 import llm_admin_service_pb2, llm_admin_service_pb2_grpc

from services.common.platform.errors import Unavailable
from services.common.platform.settings import EXIT_BAD_CONFIGURATION, declared_variables, load_settings
from services.mesh.operate.addresses import _PORTS, Addresses, Part
from services.mesh.operate.rpc import connect
from services.mesh.operate.settings import OperateSettings
from services.mesh.runner.compose import Compose, selected
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.embedded import free_port
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.plan import Planner
from services.mesh.runner.settings import MeshSettings
from tests.limits import seconds

COMPOSE_FILE = REPOSITORY_ROOT / "docker-compose.yml"
HOLD = REPOSITORY_ROOT / "services" / "mesh" / "images" / "hold.sh"
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}
FILES = "/var/lib/tunemesh/files"


def document() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def raw_services() -> dict[str, dict[str, Any]]:
    return document()["services"]


def compose(**environ: str) -> Compose:
    return load_compose(COMPOSE_FILE, environ)


def num_bytes(size: str) -> int:
    return int(size[:-1]) * UNITS[size[-1]]


def dependencies(services: dict[str, dict[str, Any]], name: str) -> set[str]:
    """Return all that a service waits for, directly or not."""
    found: set[str] = set()
    pending = [name]
    while pending:
        for other in services[pending.pop()].get("depends_on", {}):
            if other not in found:
                found.add(other)
                pending.append(other)
    return found


def active(services: dict[str, dict[str, Any]], profile: str) -> set[str]:
    return {name for name, service in services.items() if profile in service.get("profiles", [profile])}


def test_each_image_of_ours_is_built_by_one_service_and_every_user_of_it_waits_for_that_one() -> None:
    """Services that build one tag side by side export it at the same time, and all but one fail: "image already exists"."""
    services = raw_services()
    builders: dict[str, list[str]] = {}
    for name, service in services.items():
        if "build" in service:
            builders.setdefault(service["image"], []).append(name)
    assert {image: len(names) for image, names in builders.items()} == dict.fromkeys(builders, 1)
    assert set(builders) == {service["image"] for service in services.values() if service["image"].startswith("tunemesh/")}
    for name, service in services.items():
        if service["image"] not in builders or "build" in service:
            continue
        [builder] = builders[service["image"]]
        assert builder in dependencies(services, name), f"{name} does not wait for {builder}"
        # An optional dependency whose profile is off is left out in silence, and the image with it.
        assert all(builder in active(services, profile) for profile in service.get("profiles", ["", "cpu", "gpu"])), name
        assert service["pull_policy"] == "never", f"{name}: an image that nobody built yet would be asked for from Docker Hub"


def test_a_builder_builds_from_this_tree_and_ends_at_once() -> None:
    for name, service in raw_services().items():
        if "build" not in service:
            continue
        assert (service["pull_policy"], service["restart"], service["command"], service["entrypoint"]) == ("build", "no", ["true"], [])
        assert name == "image-" + service["image"].removeprefix("tunemesh/").partition(":")[0]
        assert "x-tunemesh" not in service


def test_the_writer_of_a_volume_in_memory_may_use_as_much_as_the_volume_holds() -> None:
    """A page of a tmpfs is charged to whoever touches it first: the updater reserves the blocks of a table when it makes it, from a base
    of about that size, which it holds meanwhile."""
    volumes = document()["volumes"]
    in_memory = {
        name: num_bytes(re.findall(r"size=(\d+[kmg])", body["driver_opts"]["o"])[0])
        for name, body in volumes.items()
        if (body or {}).get("driver_opts", {}).get("type") == "tmpfs"
    }
    assert set(in_memory) == {"tables"}
    services = raw_services()
    own = num_bytes(services["features"]["mem_limit"])  # what a service of the light environment gets for itself
    assert num_bytes(services["updater"]["mem_limit"]) >= 2 * in_memory["tables"] + own


def held(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["/bin/sh", str(HOLD), *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("code", [0, 1, 3, 70])
def test_a_service_that_ends_ends_its_container_with_its_code(code: int) -> None:
    process = held("/bin/sh", "-c", f"echo said; exit {code}")
    said, _ = process.communicate(timeout=seconds(30))
    assert (said, process.returncode) == ("said\n", code)


def test_a_service_that_is_killed_ends_its_container() -> None:
    process = held("/bin/sh", "-c", "kill -9 $$")
    process.communicate(timeout=seconds(30))
    assert process.returncode == 128 + signal.SIGKILL


def test_a_service_is_stopped_with_its_container_and_may_take_its_time() -> None:
    process = held("/bin/sh", "-c", "trap 'sleep 0.3; echo drained; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    assert output_line(process) == "ready"
    process.terminate()
    said, _ = process.communicate(timeout=seconds(30))
    assert (said, process.returncode) == ("drained\n", 7)


def test_a_wrong_configuration_is_said_once_and_the_container_stays_until_it_is_stopped() -> None:
    process = held("/bin/sh", "-c", f"echo configuration error: PORT; exit {EXIT_BAD_CONFIGURATION}")
    assert output_line(process) == "configuration error: PORT"
    assert "docker compose up" in output_line(process)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    said, _ = process.communicate(timeout=seconds(30))
    assert (said, process.returncode) == ("", EXIT_BAD_CONFIGURATION)


def test_every_long_running_service_of_ours_is_held_after_a_wrong_configuration_and_no_job_is() -> None:
    """`restart: unless-stopped` starts a container again whatever its exit code was, for ever."""
    dockerfile = (REPOSITORY_ROOT / "services" / "Dockerfile").read_text()
    assert "COPY services/mesh/images/hold.sh /app/hold.sh" in dockerfile
    for name, service in raw_services().items():
        if not service["image"].startswith(("tunemesh/light", "tunemesh/ml")):
            continue
        if service["restart"] == "no":
            assert "hold.sh" not in str(service["entrypoint"]), f"{name}: others wait for the end of a job"
        else:
            assert service["entrypoint"] == ["/bin/sh", "/app/hold.sh"], name


def test_files_of_the_user_are_mounted_wherever_a_setting_can_name_them() -> None:
    for name, service in compose().services.items():
        wanted = {"TUNEMESH_FEATURE_SPEC", "TUNEMESH_TRAINER_INITIAL_BASE", "TUNEMESH_RECOMMENDER_RULES_PATH"} & set(service.environment)
        mounted = {mount.target for mount in service.volumes if mount.source == "files"}
        assert mounted == ({FILES} if wanted else set()), name


def test_one_setting_names_a_file_of_the_user_for_docker_and_for_the_runner(tmp_path: Path) -> None:
    environ = {
        "TUNEMESH_FILES_DIR": "./mine",
        "TUNEMESH_TRAINER_INITIAL_BASE": f"{FILES}/my_base",
        "TUNEMESH_FEATURE_SPEC": f"{FILES}/s.yaml",
    }
    loaded = compose(**environ)
    settings = MeshSettings(run_dir=tmp_path / "run", broker="tansu")
    planner = Planner(loaded, selected(loaded), settings=settings, environ=environ, environments=Environments.of_repository())
    trainer = planner.environment_of(loaded.services["trainer"])
    assert trainer["TUNEMESH_TRAINER_INITIAL_BASE"] == str(REPOSITORY_ROOT / "mine" / "my_base")
    assert trainer["TUNEMESH_FEATURE_SPEC"] == str(REPOSITORY_ROOT / "mine" / "s.yaml")
    assert any(mount.source == "./mine" and mount.target == FILES for mount in loaded.services["trainer"].volumes)


def test_the_operators_command_in_the_network_finds_every_part_at_a_port_that_the_part_has(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = compose()
    command = raw_services()["tunemesh"]
    assert (command["profiles"], command["restart"], command["entrypoint"]) == (["operate"], "no", ["python", "-m", "services.mesh"])
    environment = loaded.services["tunemesh"].environment
    assert {name for name in environment if name.startswith("TUNEMESH_OPERATE_")} <= set(declared_variables(OperateSettings))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    addresses = Addresses(load_settings(OperateSettings), Path("no-mesh-here"))
    for part in get_args(Part):
        name, _, port = addresses.of(part).partition(":")
        local = loaded.services[name].local
        assert local is not None
        assert int(port) in local.ports, part


def test_what_compose_publishes_is_where_the_operators_command_looks_from_outside() -> None:
    services = raw_services()
    for part, port in _PORTS.items():
        published = [entry for service in services.values() for entry in service.get("ports", []) if port.variable in entry]
        assert port.is_published == (published != []), part
        if published:
            assert any(entry.startswith(f"127.0.0.1:${{{port.variable}:-{port.default}}}:") for entry in published), part


def test_who_looks_for_the_adapters_api_from_outside_is_told_where_it_is(tmp_path: Path) -> None:
    outside = Addresses(load_settings(OperateSettings), tmp_path)
    with connect("llm admin", f"127.0.0.1:{free_port()}", outside.hint("llm_admin")) as client:
        stub = llm_admin_service_pb2_grpc.LlmAdminServiceStub(client.channel)
        with pytest.raises(Unavailable, match=r"nobody answers there \(with Docker .* use `docker compose run --rm tunemesh …` there\)"):
            client.call(stub.ListAdapters, llm_admin_service_pb2.ListAdaptersRequest(), timeout_ms=10_000)
    assert outside.hint("trainer") == ""


def test_two_containers_of_a_stream_are_two_members_of_its_group() -> None:
    """Members with one static id fence each other; the name of a container is its own, and stays over restarts."""
    found = set()
    for name, service in compose().services.items():
        assert not [variable for variable in service.environment if variable.endswith("_WORKER_ID")], name
        if not service.command[2:] or not service.command[2].startswith("streams."):
            continue
        for cls in vars(importlib.import_module(f"{service.command[2]}.settings")).values():
            if isinstance(cls, type) and issubclass(cls, BaseSettings) and "worker_id" in cls.model_fields:
                assert cls.model_fields["worker_id"].default_factory is socket.gethostname, cls
                found.add(name)
    assert found == {"joiner", "features", "curator", "inference"}  # the others assign partitions to themselves
