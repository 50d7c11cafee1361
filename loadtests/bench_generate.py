"""Measure streaming through router and llm against vLLM's own HTTP server: `python -m loadtests.bench_generate [--write]`.

Runs in the light environment. Three ways to the same model with the same settings: the router (with the prompt assembler), the llm
service alone, and vLLM's OpenAI server. Each answers like chats in interleaved rounds, first one stream at a time, then eight. Per way:
tokens/s of each round, and the time to the first text of every request. `--write` puts the table into loadtests/RESULTS.md. Nothing
else should run meanwhile: two engines lie in memory, and the one that is not asked is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc.aio
import uvloop
from tunemesh.common.v1.chat_pb2 import ChatMessage, Sampling
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.language.base_model import PACKAGED_MODEL, packaged_folder
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import exit_with_configuration_error
from services.mesh.runner import embedded, health
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.embedded import LOOPBACK, Command, EmbeddedServer, free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.plan import niceness
from services.mesh.runner.topics import create_topics, mesh_topic_partitions

RESULTS = REPOSITORY_ROOT / "loadtests" / "RESULTS.md"
HEADING = "## Generate: streaming through router and llm, against vLLM's own HTTP server"
WAYS = ("router", "llm", "vllm http")
MIN_RATIO, MAX_ADDED_TTFT_MS = 0.95, 10.0

# The engine's settings, once for both.
# Emulated bfloat16 would hide what is compared here behind seconds of computing.
_DTYPE = "float32"
_CONTEXT, _SEQS, _LORAS, _CPU_LORAS, _RANK, _KV_GIB = 2048, 16, 2, 4, 16, 1
_START_LIMIT_S = 240.0
_WHOLE_LIMIT_S = 30.0
# vLLM's worker polls without pause for a second after its last step (SpinCondition in vllm/distributed/device_communicators/
# shm_broadcast.py), and would take a core from the other engine: up to 0.9 s of TTFT, for whichever way comes after a change of engine.
_QUIET_S = 1.5


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer as its caller saw it."""

    ttft_ms: float
    num_tokens: int


@dataclass(slots=True)
class Measured:
    """All of one way at one number of streams."""

    tokens_per_s: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)


class Degraded(Exception):
    """The router's answer lacks something, so it is no measure."""


Chat = Callable[[str], Awaitable[tuple[str, Sequence[ChatMessage]]]]
Ask = Callable[[str, Sequence[ChatMessage]], AsyncIterator[tuple[str, int]]]
Results = dict[tuple[str, int], Measured]


def question(way: str, number: int) -> str:
    """Return a question that no way was asked before, so that no engine has its prompt cached; all have equally many tokens."""
    return f"Story number {WAYS.index(way)}{number:04d}: tell a long story about a cinema, a lost film and its finder."


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
        "TUNEMESH_LLM_DTYPE": _DTYPE,
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
    launch = REPOSITORY_ROOT / "services" / "mesh" / "launch.py"
    return (sys.executable, "-I", "-S", str(launch), str(os.getpid()), str(niceness(shares)))


def _vllm_command(python: str, shared: dict[str, str], port: int) -> Command:
    model = str(packaged_folder(REPOSITORY_ROOT / "build" / "models"))
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", LOOPBACK, "--port", str(port)]
    argv += ["--model", model, "--served-model-name", PACKAGED_MODEL, "--dtype", _DTYPE, "--max-model-len", str(_CONTEXT)]
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
    return lambda: asyncio.run(health.probe(port)) == "SERVING"


def _http_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def ask_router(channel: grpc.aio.Channel, max_tokens: int) -> Ask:
    """Return a way that takes the question; the prompt is assembled behind the router."""
    stub = router_service_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]

    async def ask(text: str, _: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        request = router_service_pb2.GenerateRequest(user_id="bench", question=text, sampling=Sampling(max_tokens=max_tokens))
        async for response in stub.Generate(request):
            if response.header.degraded_reason:
                raise Degraded(response.header.degraded_reason)
            yield response.text, response.usage.completion_tokens

    return ask


def ask_llm(channel: grpc.aio.Channel, max_tokens: int) -> Ask:
    """Return a way that takes the assembled messages."""
    stub = llm_service_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]

    async def ask(_: str, messages: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        request = llm_service_pb2.GenerateRequest(request_id="bench", messages=messages, sampling=Sampling(max_tokens=max_tokens))
        async for response in stub.Generate(request):
            yield response.text, response.usage.completion_tokens

    return ask


def ask_http(session: aiohttp.ClientSession, port: int, max_tokens: int) -> Ask:
    """Return a way that takes the assembled messages, by server-sent events."""
    url = f"http://{LOOPBACK}:{port}/v1/chat/completions"

    async def ask(_: str, messages: Sequence[ChatMessage]) -> AsyncIterator[tuple[str, int]]:
        body = {
            "model": PACKAGED_MODEL,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        async with session.post(url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                text = event["choices"][0]["delta"].get("content") or "" if event["choices"] else ""
                yield text, (event.get("usage") or {}).get("completion_tokens", 0)

    return ask


async def answer(ask: Ask, text: str, messages: Sequence[ChatMessage]) -> Answer:
    """Read one stream to its end."""
    started = time.perf_counter()
    ttft_ms, num_tokens = 0.0, 0
    async for piece, tokens in ask(text, messages):
        if piece and not ttft_ms:
            ttft_ms = (time.perf_counter() - started) * 1e3
        num_tokens = max(num_tokens, tokens)
    if not ttft_ms or not num_tokens:
        raise RuntimeError("an answer without text or without usage")
    return Answer(ttft_ms, num_tokens)


async def _until_whole(router: Ask, chat: Chat) -> None:
    """Wait until the router and the prompt assembler have read control.v1: before, each answer says what it lacks."""
    deadline = time.monotonic() + _WHOLE_LIMIT_S
    while True:
        try:
            await answer(router, *await chat("router"))
            return
        except Degraded:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def one_round(ask: Ask, chats: Sequence[tuple[str, Sequence[ChatMessage]]], into: Measured) -> None:
    """Ask all chats at once and wait for all."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(answer(ask, text, messages) for text, messages in chats))
    into.tokens_per_s.append(sum(one.num_tokens for one in answers) / (time.perf_counter() - started))
    into.ttft_ms.extend(one.ttft_ms for one in answers)


async def measure(ports: dict[str, int], options: argparse.Namespace) -> Results:
    """Run every round of every way, the ways in another order each time."""
    results: Results = {(way, streams): Measured() for streams in options.streams for way in WAYS}
    async with (
        grpc.aio.insecure_channel(f"{LOOPBACK}:{ports['router']}") as router,
        grpc.aio.insecure_channel(f"{LOOPBACK}:{ports['llm']}") as llm,
        grpc.aio.insecure_channel(f"{LOOPBACK}:{ports['prompt_assembler']}") as assembler,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        asks = {
            "router": ask_router(router, options.tokens),
            "llm": ask_llm(llm, options.tokens),
            "vllm http": ask_http(session, ports["vllm http"], options.tokens),
        }
        chat = _chats(prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub(assembler))  # type: ignore[no-untyped-call]
        await _until_whole(asks["router"], chat)
        for way in WAYS:
            await one_round(asks[way], [await chat(way) for _ in range(2)], Measured())
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            for streams in options.streams:
                for offset in range(len(WAYS)):
                    way = WAYS[(number + offset) % len(WAYS)]
                    repeats = options.repeats if streams == 1 else 1
                    await asyncio.sleep(_QUIET_S)
                    for _ in range(repeats):
                        await one_round(asks[way], [await chat(way) for _ in range(streams)], results[way, streams])
    return results


def _chats(assembler: prompt_assembler_service_pb2_grpc.PromptAssemblerServiceStub) -> Chat:
    numbers = dict.fromkeys(WAYS, 0)

    async def chat(way: str) -> tuple[str, Sequence[ChatMessage]]:
        numbers[way] += 1
        text = question(way, numbers[way])
        response = await assembler.Assemble(prompt_assembler_service_pb2.AssembleRequest(template="answer", question=text))
        return text, response.messages

    return chat


def report(results: Results, streams: Sequence[int]) -> tuple[list[str], bool]:
    """Return the table's lines, and whether the router meets the bar."""
    lines = [
        "| streams | way | tokens/s median (min to max) | against vLLM's server | TTFT p50, ms (p10 to p90) | added p50, ms |",
        "|---|---|---|---|---|---|",
    ]
    is_met = True
    for number in streams:
        peer = results["vllm http", number]
        for way in WAYS:
            mine = results[way, number]
            # Rounds are interleaved, so the ratio of each round is free of what the machine did between rounds.
            ratio = statistics.median(a / b for a, b in zip(mine.tokens_per_s, peer.tokens_per_s, strict=True))
            added = statistics.median(mine.ttft_ms) - statistics.median(peer.ttft_ms)
            spread = f"{statistics.median(mine.tokens_per_s):.1f} ({min(mine.tokens_per_s):.1f} to {max(mine.tokens_per_s):.1f})"
            low, middle, high = (sorted(mine.ttft_ms)[round(share * (len(mine.ttft_ms) - 1))] for share in (0.1, 0.5, 0.9))
            against = "–" if way == "vllm http" else f"{ratio:.3f}×"
            more = "–" if way == "vllm http" else f"{added:+.1f}"
            lines.append(f"| {number} | {way} | {spread} | {against} | {middle:.0f} ({low:.0f} to {high:.0f}) | {more} |")
            is_met = is_met and (way != "router" or (ratio >= MIN_RATIO and added <= MAX_ADDED_TTFT_MS))
    return lines, is_met


def write_section(path: Path, heading: str, body: str) -> None:
    """Replace the section under `heading` in a Markdown file, or append it."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results of the load tests\n"
    section = f"{heading}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    text = pattern.sub(lambda _: f"{section}\n", text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    path.write_text(f"{text.rstrip()}\n", encoding="utf-8")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench_generate", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds of every way")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], help="numbers of streams at a time")
    parser.add_argument("--repeats", type=int, default=2, help="answers per round at one stream")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("--write", action="store_true", help="put the table into loadtests/RESULTS.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure, print, and return 0 when the bar is met."""
    options = parse(argv)
    # Else a `timeout` around this would leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tunemesh-bench-") as folder,
            servers(Path(folder)) as ports,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            results = runner.run(measure(ports, options))
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    lines, is_met = report(results, options.streams)
    bar = f"at least {MIN_RATIO}× tokens/s and at most {MAX_ADDED_TTFT_MS:.0f} ms added TTFT p50, through the router"
    verdict = f"Bar ({bar}): {'met' if is_met else 'NOT met'}."
    print("\n".join([*lines, verdict]))
    if options.write:
        how = (
            f"`python -m loadtests.bench_generate --rounds {options.rounds} --repeats {options.repeats} --tokens {options.tokens} --write`"
        )
        where = (
            f"{os.cpu_count()} cores ({platform.machine()}), {PACKAGED_MODEL} in {_DTYPE}, LoRA enabled, greedy, prompts never seen before."
        )
        write_section(RESULTS, HEADING, "\n".join([f"{how} on {where}", "", *lines, "", verdict]))
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
