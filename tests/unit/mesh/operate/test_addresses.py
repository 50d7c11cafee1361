import time
from pathlib import Path

import pytest

from services.mesh.operate.addresses import Addresses
from services.mesh.operate.settings import OperateSettings
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.state import MeshState, ServiceState


@pytest.fixture
def run_dir(tmp_path: Path):
    folder = RunFolder(tmp_path)
    with folder.lock():
        ports = {"TUNEMESH_LLM_PORT": 61, "TUNEMESH_LLM_ADMIN_PORT": 62}
        services = {"kafka": ServiceState(ports={"TUNEMESH_KAFKA_PORT": 60}), "llm": ServiceState(ports=ports)}
        folder.write(MeshState(phase="up", feature_spec="/team/spec.yaml", started_ms=int(time.time() * 1e3), services=services))
        yield tmp_path


def test_a_part_is_where_the_mesh_of_the_run_folder_says(run_dir: Path) -> None:
    addresses = Addresses(OperateSettings(), run_dir)
    assert (addresses.of("kafka"), addresses.of("llm_admin")) == ("127.0.0.1:60", "127.0.0.1:62")


def test_a_part_that_the_mesh_does_not_run_is_at_its_published_port(run_dir: Path, tmp_path: Path) -> None:
    assert Addresses(OperateSettings(), run_dir).of("trainer") == "127.0.0.1:50054"
    assert Addresses(OperateSettings(), tmp_path / "none").of("kafka") == "127.0.0.1:19092"


def test_a_variable_wins(run_dir: Path) -> None:
    settings = OperateSettings(kafka_bootstrap_servers="broker:9092", llm_admin_target="llm:50059")
    addresses = Addresses(settings, run_dir)
    assert (addresses.of("kafka"), addresses.of("llm_admin")) == ("broker:9092", "llm:50059")


def test_the_feature_spec_is_that_of_the_running_mesh_unless_a_variable_names_another(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEMESH_FEATURE_SPEC", raising=False)
    assert Addresses(OperateSettings(), run_dir).feature_spec == Path("/team/spec.yaml")
    assert Addresses(OperateSettings(), tmp_path / "none").feature_spec == Path("model_repo/ranker/feature_spec.yaml")
    monkeypatch.setenv("TUNEMESH_FEATURE_SPEC", "/other.yaml")
    assert Addresses(OperateSettings(), run_dir).feature_spec == Path("/other.yaml")
