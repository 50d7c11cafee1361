"""Measure streaming through router and llm against vLLM's own HTTP server: `python -m loadtests.bench_generate [--write]`.

Runs in the light environment. Three ways to the same model with the same settings: the router (with the prompt assembler), the llm
service alone, and vLLM's OpenAI server. Each answers like chats in interleaved rounds, first one stream at a time, then eight. Per way:
tokens/s of each round, and the time to the first text of every request. `--write` puts the table into loadtests/RESULTS.md. Nothing
else should run meanwhile: two engines lie in memory, and the one that is not asked is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvloop
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc

from loadtests.bench_generate.servers import DTYPE, servers
from loadtests.bench_generate.ways import Ask, Degraded, answer, ask_http, ask_llm, ask_router
from services.common.language.base_model import PACKAGED_MODEL
from services.common.platform.errors import ConfigurationError
from services.common.platform.grpc_client import open_channel
from services.common.platform.settings import exit_with_configuration_error
from services.mesh.runner.embedded import LOOPBACK
from services.mesh.runner.environments import REPOSITORY_ROOT

RESULTS = REPOSITORY_ROOT / "loadtests" / "RESULTS.md"
HEADING = "## Generate: streaming through router and llm, against vLLM's own HTTP server"
WAYS = ("router", "llm", "vllm http")
MIN_RATIO, MAX_ADDED_TTFT_MS = 0.95, 10.0

_WHOLE_LIMIT_S = 30.0
# vLLM's worker polls without pause for a second after its last step (SpinCondition in vllm/distributed/device_communicators/
# shm_broadcast.py), and would take a core from the other engine: up to 0.9 s of TTFT, for whichever way comes after a change of engine.
_QUIET_S = 1.5


@dataclass(slots=True)
class Measured:
    """All of one way at one number of streams."""

    tokens_per_s: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)


Chat = Callable[[str], Awaitable[tuple[str, Sequence[ChatMessage]]]]
Results = dict[tuple[str, int], Measured]


def question(way: str, number: int) -> str:
    """Return a question that no way was asked before, so that no engine has its prompt cached; all have equally many tokens."""
    return f"Story number {WAYS.index(way)}{number:04d}: tell a long story about a cinema, a lost film and its finder."


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
        open_channel(f"{LOOPBACK}:{ports['router']}") as router,
        open_channel(f"{LOOPBACK}:{ports['llm']}") as llm,
        open_channel(f"{LOOPBACK}:{ports['prompt_assembler']}") as assembler,
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
            f"{os.cpu_count()} cores ({platform.machine()}), {PACKAGED_MODEL} in {DTYPE}, LoRA enabled, greedy, prompts never seen before."
        )
        write_section(RESULTS, HEADING, "\n".join([f"{how} on {where}", "", *lines, "", verdict]))
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
