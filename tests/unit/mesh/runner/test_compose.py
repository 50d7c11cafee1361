"""The stated subset of compose: what it reads, and the one line that it says about everything else."""

from pathlib import Path

import pytest

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.compose import Compose, Mount, selected, start_order
from services.mesh.runner.compose_reader import load_compose

FULL = """
name: example
x-common: &common { image: "example:1", restart: unless-stopped }
services:
  store:
    image: store:1
    x-tunemesh: { embedded: redis, ports: { 6379: STORE_PORT }, external: STORE_URL }
  web:
    <<: *common
    command: ["python", "-m", "web", "--price=$$5"]
    environment: { STORE: "${STORE_URL:-store:6379}", WORKERS: 2 }
    depends_on: { store: { condition: service_healthy } }
    healthcheck: { test: ["CMD", "true"], interval: 1m30s, timeout: 500ms }
    volumes: ["data:/var/data", "./conf:/etc/conf:ro"]
    stop_grace_period: 3s
    cpu_shares: 256
    x-tunemesh: { env: light, ports: { 80: WEB_PORT } }
  extra:
    image: extra:1
    profiles: [extra]
volumes: { data: { x-tunemesh: { folder: build/data } } }
"""


def read(tmp_path: Path, text: str, **environ: str) -> Compose:
    (tmp_path / "docker-compose.yml").write_text(text)
    return load_compose(tmp_path / "docker-compose.yml", environ)


def test_a_service_is_read_with_its_variables_put_in(tmp_path: Path) -> None:
    web = read(tmp_path, FULL).services["web"]
    assert web.command == ("python", "-m", "web", "--price=$5")
    assert web.environment == {"STORE": "store:6379", "WORKERS": "2"}
    assert web.healthcheck is not None
    assert (web.healthcheck.interval_s, web.healthcheck.timeout_s, web.stop_grace_s) == (90.0, 0.5, 3.0)
    assert web.volumes == (
        Mount(source="data", target="/var/data", is_named=True, folder="build/data"),
        Mount(source="./conf", target="/etc/conf", is_named=False),
    )
    assert (web.image, web.restart, web.cpu_shares) == ("example:1", "unless-stopped", 256)


def test_the_users_variable_wins_over_the_default_and_an_empty_one_does_not(tmp_path: Path) -> None:
    assert read(tmp_path, FULL, STORE_URL="redis://elsewhere").services["web"].environment["STORE"] == "redis://elsewhere"
    assert read(tmp_path, FULL, STORE_URL="").services["web"].environment["STORE"] == "store:6379"


def test_services_with_a_profile_are_left_out_and_named_ones_bring_their_dependencies(tmp_path: Path) -> None:
    compose = read(tmp_path, FULL)
    assert list(selected(compose)) == ["store", "web"]
    assert list(selected(compose, ("store",))) == ["store"]
    assert list(selected(compose, ("web",))) == ["store", "web"]
    with pytest.raises(ConfigurationError, match=r"services\.extra: has no x-tunemesh block"):
        selected(compose, ("extra",))
    with pytest.raises(ConfigurationError, match="has no service 'nobody'; it has store, web, extra"):
        selected(compose, ("nobody",))


def test_the_runner_takes_profile_cpu_and_leaves_to_docker_what_has_no_local_form(tmp_path: Path) -> None:
    variants = """
services:
  model-cpu: { image: "m:1", profiles: [cpu], command: ["python", "-m", "m"], x-tunemesh: { env: ml } }
  model-gpu:
    image: m:1
    profiles: [gpu]
    deploy: { resources: { reservations: { devices: [{ driver: nvidia, capabilities: [gpu], device_ids: ["0:1"] }] } } }
    x-tunemesh: { env: ml }
  dashboards: { image: "d:1" }
  user:
    image: u:1
    depends_on: { model-cpu: { condition: service_started, required: false }, model-gpu: { condition: service_started, required: false } }
    x-tunemesh: { env: light }
"""
    compose = read(tmp_path, variants)
    assert list(selected(compose)) == ["model-cpu", "user"]
    assert list(selected(compose, ("user",))) == ["model-cpu", "user"]
    assert list(selected(compose, ("model-gpu",))) == ["model-gpu"]


def test_the_start_order_puts_dependencies_first_and_refuses_a_circle(tmp_path: Path) -> None:
    assert start_order(selected(read(tmp_path, FULL))) == ["store", "web"]
    circle = FULL.replace("image: store:1", "image: store:1\n    depends_on: { web: { condition: service_started } }")
    with pytest.raises(ConfigurationError, match="circle among store, web"):
        start_order(selected(read(tmp_path, circle)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stop_grace_period: 3s", "stop_signal: 3s", "services.web.stop_signal: unknown key 'stop_signal'; here the runner reads"),
        ("name: example", "networks: {}", "docker-compose.yml: networks: unknown key"),
        ('{ test: ["CMD", "true"],', '{ test: ["CMD", "true"], disable: true,', "services.web.healthcheck.disable: unknown key"),
        ('["CMD", "true"]', '"true"', "services.web.healthcheck.test: must be a list of words"),
        ("env: light,", "env: heavy,", "x-tunemesh.env: must be one of light, ml, not 'heavy'"),
        ("env: light,", "env: light, embedded: redis,", "needs exactly one of env"),
        ("{ 80: WEB_PORT }", "{ web: WEB_PORT }", "maps a port number to a variable"),
        ("condition: service_healthy", "condition: soon", "depends_on.store.condition: must be one of"),
        ("{ store: {", "{ shop: {", "depends_on: there is no service 'shop'"),
        ("data:/var/data", "date:/var/data", "volume 'date' is not declared"),
        ("1m30s", "soon", "'soon' is no duration"),
        ("{ folder: build/data }", "{ place: build/data }", "volumes.data.x-tunemesh.place: unknown key 'place'"),
        ("condition: service_healthy", "condition: service_healthy, required: 1", "depends_on.store.required: must be true or false"),
        ("stop_grace_period: 3s", "deploy: { replicas: 2 }", "services.web.deploy.replicas: unknown key"),
        ("stop_grace_period: 3s", "deploy: { resources: { limits: { cpus: 1 } } }", "services.web.deploy.resources.limits: unknown key"),
        ("cpu_shares: 256", "cpu_shares: 1", "services.web.cpu_shares: must be a whole number from 2 to 262144"),
        ("cpu_shares: 256", "cpu_shares: low", "services.web.cpu_shares: must be a whole number"),
        ("${STORE_URL:-store:6379}", "${STORE_URL}", "variable STORE_URL is not set"),
        ("${STORE_URL:-store:6379}", "${STORE_URL-x}", "is no reference"),
        ("WORKERS: 2", "WORKERS: true", "must be text or a number, not True; put it in quotes"),
        ('["python", "-m", "web", "--price=$$5"]', "python -m web", "services.web.command: must be a list of words"),
        ("unless-stopped", "sometimes", "services.web.restart: must be one of no, always"),
        ("services:", "services: [", "is no YAML"),
    ],
)
def test_whatever_lies_outside_the_subset_is_one_line_that_names_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FULL
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, FULL.replace(old, new))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent.yml does not exist: run from the repository's root"):
        load_compose(tmp_path / "absent.yml", {})
