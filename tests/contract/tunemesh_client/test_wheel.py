"""The client's wheel: what is in it, what it needs, and that it works where there is nothing else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tunemesh.common.v1 import chat_pb2, recommendation_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.limits import seconds

SOURCE = REPOSITORY_ROOT / "tunemesh_client"
GENERATED = REPOSITORY_ROOT / "protos" / "gen"
CONTRACTS = ("common", "events", "feedback_collector", "router")
# What grpcio and protobuf need themselves.
NEEDED = ("grpc", "google", "typing_extensions")

USE = """
import sys
sys.path[:] = [path for path in sys.path if path.endswith(("python3.11", "lib-dynload", ".zip"))] + sys.argv[1:3]
import pkgutil, importlib, tunemesh_client
for module in pkgutil.iter_modules(tunemesh_client.__path__):
    importlib.import_module(f"tunemesh_client.{module.name}")
from tunemesh_client import Client, EventProducer, Feedback
with Client(sys.argv[3], sys.argv[3]) as mesh:
    shown = mesh.recommend("ada", ["50", "100"])
    receipt = mesh.feedback(Feedback(shown.request_id, "ada", "rating", item_id=shown.items[0].item_id, value=5, feedback_id="f"))
    print(shown.items[0].item_id, receipt.feedback_id, "".join(mesh.generate("ada", "When?")), tunemesh_client.__file__)
try:
    EventProducer("127.0.0.1:1")
except ImportError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(SOURCE)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_has_the_client_and_the_contracts_that_it_speaks_and_nothing_else(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {f"tunemesh_client/{path.name}" for path in SOURCE.glob("*.py") if path.name != "hatch_build.py"}
    generated = {
        path.relative_to(GENERATED).as_posix()
        for contract in CONTRACTS
        for path in (GENERATED / "tunemesh" / contract).rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert len(modules) > 10 and len(generated) > 30
    assert names == modules | generated | {"tunemesh_client/py.typed", "tunemesh/py.typed"}


def test_it_needs_grpc_and_protobuf_only_and_not_older_ones_than_made_its_code(wheel) -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(re.split(r"[<>=,]", need)[0] for need in project["dependencies"]) == ["grpcio", "protobuf"]
    assert list(project["optional-dependencies"]) == ["kafka"]
    generated = (GENERATED / "tunemesh" / "router" / "v1" / "router_service_pb2.py").read_text(encoding="utf-8")
    stubs = (GENERATED / "tunemesh" / "router" / "v1" / "router_service_pb2_grpc.py").read_text(encoding="utf-8")
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", generated)
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stubs)
    assert protobuf and grpcio
    # Code of one major version of protobuf is read by the next one, and by none after that.
    too_new = int(protobuf[1].split(".")[0]) + 2
    assert project["dependencies"] == [f"grpcio>={grpcio[1]}", f"protobuf>={protobuf[1]},<{too_new}"]


class Mesh(router_grpc.RouterServiceServicer, collector_grpc.FeedbackCollectorServiceServicer):
    def Recommend(self, request: router_pb2.RecommendRequest, context: grpc.ServicerContext) -> router_pb2.RecommendResponse:
        return router_pb2.RecommendResponse(request_id="r", items=[recommendation_pb2.RankedItem(item_id=request.candidates[0])])

    def Generate(self, request: router_pb2.GenerateRequest, context: grpc.ServicerContext) -> Iterator[router_pb2.GenerateResponse]:
        yield router_pb2.GenerateResponse(text="1995.")
        yield router_pb2.GenerateResponse(finish_reason="stop", usage=chat_pb2.TokenUsage())

    def SubmitFeedback(
        self, request: collector_pb2.SubmitFeedbackRequest, context: grpc.ServicerContext
    ) -> collector_pb2.SubmitFeedbackResponse:
        return collector_pb2.SubmitFeedbackResponse(receipts=[collector_pb2.FeedbackReceipt(feedback_id=request.feedback[0].feedback_id)])


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    router_grpc.add_RouterServiceServicer_to_server(Mesh(), server)
    collector_grpc.add_FeedbackCollectorServiceServicer_to_server(Mesh(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_it_works_in_a_process_that_has_only_it_and_grpc_and_protobuf(wheel, tmp_path, address) -> None:
    installed, needed = tmp_path / "installed", tmp_path / "needed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert done.returncode == 0, done.stderr
    needed.mkdir()
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        place = Path(next(iter(spec.submodule_search_locations))) if spec.submodule_search_locations else Path(str(spec.origin))
        (needed / place.name).symlink_to(place)
    # Isolated and without site: neither PYTHONPATH nor the environment's packages nor this repository.
    python = [sys.executable, "-I", "-S", "-c", USE, str(installed), str(needed), address]
    ran = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    assert first == f"50 f 1995. {installed / 'tunemesh_client' / '__init__.py'}"
    assert second == "EventProducer needs kafka-python: pip install 'tunemesh-client[kafka]'"
