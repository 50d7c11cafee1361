"""The contracts in other languages: each proto names its Go and Java packages, and the generated code compiles where a compiler is there.

Python is always checked. Java needs javac and protoc on the PATH, and PROTOBUF_JAVA_JAR (protobuf-java of protoc's version); Go needs go,
protoc and protoc-gen-go on the PATH, and PROTOBUF_GO_DIR (a folder with the module google.golang.org/protobuf). Where they are missing
there is no such case.
"""

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from services.mesh.runner.environments import REPOSITORY_ROOT

PROTOS = REPOSITORY_ROOT / "protos"
FILES = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "tunemesh").rglob("*.proto"))


def run(*command: str, cwd: Path = PROTOS, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def protoc_of_python(*options: str) -> None:
    run(sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *options, *FILES)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    out = tmp_path_factory.mktemp("descriptors") / "all.binpb"
    protoc_of_python(f"--descriptor_set_out={out}")
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file}


@pytest.mark.parametrize("name", FILES)
def test_every_proto_names_its_package_in_go_and_java(described: dict[str, descriptor_pb2.FileDescriptorProto], name: str) -> None:
    """One rule for all: what the proto package says, in each language's way; no name of a host, which somebody else might own."""
    file = described[name]
    assert file.package == ".".join(Path(name).parent.parts)
    alias = "".join(file.package.split(".")[1:]).replace("_", "")
    assert file.options.go_package == f"{file.package.replace('.', '/')};{alias}"
    assert file.options.java_package == file.package
    assert file.options.java_multiple_files


def compile_python(out: Path) -> None:
    protoc_of_python(f"--python_out={out}", f"--grpc_python_out={out}")
    assert compileall.compile_dir(out, quiet=1)
    assert len(list(out.rglob("*_pb2.py"))) == len(FILES)


def compile_java(out: Path) -> None:
    run("protoc", "-I", str(PROTOS), f"--java_out={out}", *FILES)
    sources = [str(path) for path in out.rglob("*.java")]
    assert (out / "tunemesh" / "router" / "v1" / "RecommendRequest.java").exists()
    run("javac", "-nowarn", "-d", str(out / "classes"), "-cp", os.environ["PROTOBUF_JAVA_JAR"], *sources)
    assert (out / "classes" / "tunemesh" / "router" / "v1" / "RecommendRequest.class").exists()


def compile_go(out: Path) -> None:
    run("protoc", "-I", str(PROTOS), f"--go_out={out}", *FILES)
    protobuf, module = os.environ["PROTOBUF_GO_DIR"], out / "tunemesh"
    lines = [
        "module tunemesh",
        "go 1.19",
        "require google.golang.org/protobuf v1.28.1",
        f"replace google.golang.org/protobuf => {protobuf}",
    ]
    (module / "go.mod").write_text("\n".join(lines) + "\n")
    offline = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOSUMDB": "off", "GOCACHE": str(out / "cache")}
    run("go", "build", "./...", cwd=module, env={**os.environ, **offline})


def has(*programs: str, variable: str) -> bool:
    return variable in os.environ and all(shutil.which(program) for program in programs)


COMPILERS: dict[str, Callable[[Path], None]] = {"python": compile_python}
if has("protoc", "javac", variable="PROTOBUF_JAVA_JAR"):
    COMPILERS["java"] = compile_java
if has("protoc", "protoc-gen-go", "go", variable="PROTOBUF_GO_DIR"):
    COMPILERS["go"] = compile_go


@pytest.mark.parametrize("language", COMPILERS)
def test_the_generated_code_compiles(tmp_path: Path, language: str) -> None:
    COMPILERS[language](tmp_path)
