"""The retriever, the prompt assembler and the llm as real gRPC servers that answer as a test tells them to."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from tunemesh.common.v1 import chat_pb2, passage_pb2
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.retriever.v1 import retriever_service_pb2, retriever_service_pb2_grpc

BASE = "SmolLM2-135M-Instruct"


class Behaviour:
    """What all of them share: failures to come first, and a delay."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.delay_s = 0.0
        self.metadata: dict[str, str] = {}

    async def enter(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures:
            await context.abort(*self.failures.pop(0))
        await asyncio.sleep(self.delay_s)


class FakeRetriever(Behaviour, retriever_service_pb2_grpc.RetrieverServiceServicer):
    """Finds as many passages as it is asked for."""

    async def Search(self, request, context):
        await self.enter(request, context)
        passages = [
            passage_pb2.Passage(passage_id=f"catalog:{number}", title=f"Film {number}", text=f"made in {1990 + number}", score=1 / number)
            for number in range(1, request.limit + 1)
        ]
        return retriever_service_pb2.SearchResponse(passages=passages, index_version="7")


class FakeAssembler(Behaviour, prompt_assembler_service_pb2_grpc.PromptAssemblerServiceServicer):
    """Has the templates in `templates`; uses the first two passages, the second one first."""

    def __init__(self) -> None:
        super().__init__()
        self.templates = {"answer": "answer@v3"}
        self.degraded_reason = ""

    async def Assemble(self, request, context):
        await self.enter(request, context)
        if request.template not in self.templates:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no template {request.template}")
        used = [passage.passage_id for passage in request.passages[1::-1]]
        content = " ".join([*(passage.text for passage in request.passages), request.question])
        return prompt_assembler_service_pb2.AssembleResponse(
            messages=[chat_pb2.ChatMessage(role="user", content=content)],
            prompt_version=self.templates[request.template],
            used_passage_ids=used,
            degraded_reason=self.degraded_reason,
        )


class FakeLlm(Behaviour, llm_service_pb2_grpc.LlmServiceServicer):
    """Streams `words`, each after `word_delay_s`, then the end; each of `breaks` cuts one stream after so many, with `break_status`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ["Heat ", "is ", "from ", "1995."]
        self.adapters: set[str] = set()
        self.breaks: list[int] = []
        self.break_status = grpc.StatusCode.UNAVAILABLE
        self.word_delay_s = 0.0
        self.num_streamed = 0
        self.goes_on = asyncio.Event()  # cleared: every stream stands still after its first word
        self.goes_on.set()
        self.cut_short = asyncio.Event()  # set once a stream ended before its last word

    async def Generate(self, request, context):
        """Writes by itself, as services do: a generator whose call ends while gRPC writes hears of it whenever it is collected."""
        await self.enter(request, context)
        if request.adapter and request.adapter not in self.adapters:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.adapter} is not loaded")
        break_after = self.breaks.pop(0) if self.breaks else None
        await context.write(llm_service_pb2.GenerateResponse(model_version=request.adapter or BASE))
        try:
            for number, word in enumerate(self.words):
                if number == break_after:
                    await context.abort(self.break_status, "the engine died")
                if number:
                    await self.goes_on.wait()
                await asyncio.sleep(self.word_delay_s)
                self.num_streamed += 1
                await context.write(llm_service_pb2.GenerateResponse(text=word))
        except BaseException:
            self.cut_short.set()
            raise
        usage = chat_pb2.TokenUsage(prompt_tokens=11, completion_tokens=len(self.words))
        await context.write(llm_service_pb2.GenerateResponse(finish_reason="stop", usage=usage))


class AnswerServers:
    """All three on ports of their own; `start`, then `settings` names them, `stop` last."""

    def __init__(self) -> None:
        self.retriever, self.assembler, self.llm = FakeRetriever(), FakeAssembler(), FakeLlm()
        self.ports: dict[str, int] = {}
        self._servers: dict[str, grpc.aio.Server] = {}

    async def start(self) -> None:
        for name in ("retriever", "assembler", "llm"):
            await self.start_one(name)

    async def start_one(self, name: str) -> None:
        """Start one, at its earlier port when it had one."""
        add: Any = {
            "retriever": retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server,
            "assembler": prompt_assembler_service_pb2_grpc.add_PromptAssemblerServiceServicer_to_server,
            "llm": llm_service_pb2_grpc.add_LlmServiceServicer_to_server,
        }[name]
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add(getattr(self, name), server)
        self.ports[name] = server.add_insecure_port(f"127.0.0.1:{self.ports.get(name, 0)}")
        await server.start()
        self._servers[name] = server

    async def stop_one(self, name: str) -> None:
        """Stop one; its port stays known."""
        await self._servers.pop(name).stop(None)

    async def stop(self) -> None:
        for name in list(self._servers):
            await self.stop_one(name)

    @property
    def settings(self) -> dict[str, str]:
        """Fields of RouterSettings."""
        return {
            "retriever_target": f"127.0.0.1:{self.ports['retriever']}",
            "prompt_assembler_target": f"127.0.0.1:{self.ports['assembler']}",
            "llm_target": f"127.0.0.1:{self.ports['llm']}",
        }
