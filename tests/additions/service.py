"""Starts the service `glossary` as the local runner would, calls it, stops it, and prints what it answered as JSON."""

import importlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import grpc

from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import Environments
from services.mesh.runner.plan import Planner
from services.mesh.runner.settings import MeshSettings

NAME = "glossary"


def start() -> subprocess.Popen[str]:
    """Return the process that the runner plans from docker-compose.yml, on a free port."""
    compose = load_compose(Path("docker-compose.yml"), {})
    services = {NAME: compose.services[NAME]}
    settings = MeshSettings(run_dir=Path("run"))
    planner = Planner(compose, services, settings=settings, environ=dict(os.environ), environments=Environments.of_repository())
    [process] = planner.processes()
    env = {**os.environ, **process.env, "TUNEMESH_GLOSSARY_PORT": "0"}
    return subprocess.Popen(process.argv, env=env, cwd=process.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"READY \S+ \S+:(\d+)$", line.rstrip()):
            return int(found[1])
    raise SystemExit("not READY:\n" + "".join(said))


process = start()
try:
    messages = importlib.import_module("tunemesh.glossary.v1.glossary_service_pb2")
    stubs = importlib.import_module("tunemesh.glossary.v1.glossary_service_pb2_grpc")
    with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
        stub = stubs.GlossaryServiceStub(channel)
        meaning = stub.Explain(messages.ExplainRequest(word="Adapter"), timeout=60).meaning
        try:
            stub.Explain(messages.ExplainRequest(word="riddle"), timeout=60)
            refusal = ""
        except grpc.RpcError as error:
            refusal = f"{error.code().name}: {error.details()}"
finally:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
print(json.dumps([meaning, refusal, process.returncode]))
