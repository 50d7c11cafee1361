"""The servers that are compared: vLLM's own, the llm service with the same engine settings, and what stands before it."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.common.language.base_model import PACKAGED_MODEL, packaged_folder
from services.mesh.runner import embedded, health
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.embedded import LOOPBACK, Command, EmbeddedServer, free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.plan import niceness
from services.mesh.runner.topics import create_topics, mesh_topic_partitions

# The engine's settings, once for both.
# Emulated bfloat16 would hide what is compared here behind seconds of computing.
DTYPE = "float32"
_CONTEXT, _SEQS, _LORAS, _CPU_LORAS, _RANK, _KV_GIB = 2048, 16, 2, 4, 16, 1
_START_LIMIT_S = 240.0


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, int]]:
    """Start everything and yield name -> port."""
    environments = Environments.of_repository()
    names = ("kafka", "vllm http", "llm", "admin", "prompt_assembler", "router")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with ExitStack() as stack:
        for name, command in _commands(environments, folder, ports).items():
            print(f"starting {name}", flush=True)
            ready = _ready(name, ports[name])
            server = EmbeddedServer(command, log=folder / f"{name.replace(' ', '-')}.log", ready=ready, timeout_s=_START_LIMIT_S)
            stack.callback(server.stop)
            if name == "kafka":
                create_topics(f"{LOOPBACK}:{ports['kafka']}", mesh_topic_partitions(user_partitions=2, shards=1))
        yield ports


def _commands(environments: Environments, folder: Path, ports: dict[str, int]) -> dict[str, Command]:
    shared = {
        **embedded.inherited_environment(),
        "PYTHONPATH": f"{REPOSITORY_ROOT}{os.pathsep}{REPOSITORY_ROOT / 'protos' / 'gen'}",
        "TUNEMESH_TELEMETRY_DIR": str(folder / "telemetry"),
        "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "0.01",
        "TUNEMESH_ARTIFACTS_URL": str(folder / "artifacts"),
        "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{ports['kafka']}",
    }
    llm = {
        "TUNEMESH_LLM_PORT": str(ports["llm"]),
        "TUNEMESH_LLM_ADMIN_PORT": str(ports["admin"]),
        "TUNEMESH_LLM_ADAPTERS_DIR": str(folder / "adapters"),
        "TUNEMESH_LLMDTYPE": DTYPE,
        "TUNEMESH_LLM_CPU_THREADS": _cores(),
        "TUNEMESH_LLM_MAX_MODEL_LEN": str(_CONTEXT),
        "TUNEMESH_LLM_MAX_NUM_SEQS": str(_SEQS),
        "TUNEMESH_LLM_MAX_LORAS": str(_LORAS),
        "TUNEMESH_LLM_MAX_CPU_LORAS": str(_CPU_LORAS),
        "TUNEMESH_LLM_MAX_LORA_RANK": str(_RANK),
        "TUNEMESH_LLM_KV_CACHE_GIB": str(_KV_GIB),
    }
    router = {
        "TUNEMESH_ROUTER_PORT": str(ports["router"]),
        "TUNEMESH_ROUTER_LLM_TARGET": f"{LOOPBACK}:{ports['llm']}",
        "TUNEMESH_ROUTER_PROMPT_ASSEMBLER_TARGET": f"{LOOPBACK}:{ports['prompt_assembler']}",
        "TUNEMESH_ROUTER_SPOOL_DIR": str(folder / "spool"),
    }
    assembler = {"TUNEMESH_PROMPT_ASSEMBLER_PORT": str(ports["prompt_assembler"])}
    ml, light = str(environments.python("ml")), str(environments.python("light"))
    return {
        "kafka": embedded.broker_command(environments, port=ports["kafka"]),
        "vllm http": _vllm_command(ml, shared, ports["vllm http"]),
        "llm": Command(argv=(*_launcher("llm"), ml, "-m", "services.llm"), env={**shared, **llm}),
        "prompt_assembler": Command(argv=(light, "-m", "services.prompt_assembler"), env={**shared, **assembler}),
        "router": Command(argv=(light, "-m", "services.router"), env={**shared, **router}),
    }


def _launcher(service: str) -> tuple[str, ...]:
    """Return what the runner puts before a service's command: its share of the processor is that of compose."""
    shares = load_compose(REPOSITORY_ROOT / "docker-compose.yml", os.environ).services[service].cpu_shares
    launch = REPOSITORY_ROOT / "services" / "mesh" / "runner" / "launch.py"
    return (sys.executable, "-I", "-S", str(launch), str(os.getpid()), str(niceness(shares)))


def _vllm_command(python: str, shared: dict[str, str], port: int) -> Command:
    model = str(packaged_folder(REPOSITORY_ROOT / "build" / "models"))
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", LOOPBACK, "--port", str(port)]
    argv += ["--model", model, "--served-model-name", PACKAGED_MODEL, "--dtype", DTYPE, "--max-model-len", str(_CONTEXT)]
    argv += ["--max-num-seqs", str(_SEQS), "--kv-cache-memory-bytes", str(_KV_GIB * 1024**3), "--enable-lora"]
    argv += ["--max-loras", str(_LORAS), "--max-cpu-loras", str(_CPU_LORAS), "--max-lora-rank", str(_RANK)]
    argv += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    return Command(
        argv=tuple(argv), env={**shared, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": _cores()}
    )


def _cores() -> str:
    """All cores, for both: vLLM's own choice leaves one free."""
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))


def _ready(name: str, port: int) -> Callable[[], bool]:
    if name == "kafka":
        return lambda: embedded.broker_ready(port)
    if name == "vllm http":
        return lambda: _http_ready(port)
    return lambda: health.probe(port) == "SERVING"


def _http_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False
