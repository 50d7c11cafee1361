"""PromptAssemblerService: proto -> domain, one call of the core, domain -> proto."""

from __future__ import annotations

from typing import Any

import grpc.aio
from opentelemetry.metrics import Meter
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2 as pb
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2_grpc

from services.common.events.wire.chat import chat_messages, messages_of, passages_of
from services.prompt_assembler.core.assembler import Assembler
from services.prompt_assembler.core.question import Question
from services.prompt_assembler.core.template import Template

Context = grpc.aio.ServicerContext[Any, Any]


class PromptAssemblerServicer(prompt_assembler_service_pb2_grpc.PromptAssemblerServiceServicer):
    """Serves one Assembler."""

    def __init__(self, assembler: Assembler, meter: Meter) -> None:
        """`meter` gets histograms of tokens and of passages left out, and the counter `prompt_assembler.degraded` by reason."""
        self._assembler = assembler
        self._tokens = meter.create_histogram("prompt_assembler.tokens", description="Tokens of an assembled prompt.")
        self._left_out = meter.create_histogram("prompt_assembler.passages_left_out", description="Passages over the budget.")
        self._degraded = meter.create_counter("prompt_assembler.degraded", description="Prompts that say what was missing, by reason.")

    async def Assemble(self, request: pb.AssembleRequest, context: Context) -> pb.AssembleResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: see the proto and core.Assembler.assemble."""
        question = Question(
            text=request.question,
            passages=passages_of(request.passages),
            history=messages_of(request.history),
            max_prompt_tokens=request.max_prompt_tokens,
        )
        prompt = await self._assembler.assemble(request.template, request.label, question)
        self._tokens.record(prompt.prompt_tokens)
        self._left_out.record(len(request.passages) - len(prompt.used_passage_ids))
        if prompt.degraded_reason:
            self._degraded.add(1, {"reason": prompt.degraded_reason})
        return pb.AssembleResponse(
            messages=chat_messages(prompt.messages),
            prompt_version=prompt.prompt_version,
            used_passage_ids=prompt.used_passage_ids,
            prompt_tokens=prompt.prompt_tokens,
            degraded_reason=prompt.degraded_reason,
        )

    async def PutTemplate(self, request: pb.PutTemplateRequest, context: Context) -> pb.PutTemplateResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: see core.Assembler.put."""
        given = request.template
        template = Template(
            name=given.name,
            version=given.version,
            messages=messages_of(given.messages),
            max_prompt_tokens=given.max_prompt_tokens,
            passage_format=given.passage_format,
            description=given.description,
        )
        return pb.PutTemplateResponse(version=await self._assembler.put(template))

    async def GetTemplate(self, request: pb.GetTemplateRequest, context: Context) -> pb.GetTemplateResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: see core.Assembler.get."""
        found, labels = await self._assembler.get(request.name, request.version, request.label)
        template = pb.Template(
            name=found.name,
            version=found.version,
            messages=chat_messages(found.messages),
            max_prompt_tokens=found.max_prompt_tokens,
            passage_format=found.passage_format,
            description=found.description,
        )
        return pb.GetTemplateResponse(template=template, labels=labels)

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Context) -> pb.ListTemplatesResponse:  # noqa: ARG002 - gRPC's signature
        """Errors: UNAVAILABLE when the store cannot be read."""
        summaries = await self._assembler.summaries()
        return pb.ListTemplatesResponse(
            templates=[pb.TemplateSummary(name=item.name, newest_version=item.newest_version, labels=item.labels) for item in summaries]
        )
