"""The tuner's clients against real gRPC servers that answer as the router, the llm, the assembler and the trainer do."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.llm.v1 import llm_admin_service_pb2, llm_admin_service_pb2_grpc
from tunemesh.prompt_assembler.v1 import prompt_assembler_service_pb2, prompt_assembler_service_pb2_grpc
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

from services.common.events.chat import Message, Passage
from services.common.language.adapter_name import AdapterName
from services.common.language.evaluation import Question
from services.common.platform.errors import Conflict, InvalidInput, Unavailable
from services.common.platform.grpc_client import open_channel
from services.tuner.grpc_calls import Retries
from services.tuner.grpc_control import GrpcControl
from services.tuner.grpc_prompts import GrpcPrompts
from services.tuner.grpc_serving import GrpcServing, WrongModel
from services.tuner.neighbours import Answered, Live

NAME = AdapterName("Base", "helpdesk", 2)
ASKED = Question(question="How long?", accept=(("nine days",),))
NINE_DAYS = Answered("nine days", "answer@v3")


class Peers:
    """All four, with what the test sets. `failures`: statuses that the next calls end with."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.calls = 0
        self.requests: list[object] = []
        self.model_version, self.degraded_reason = "", ""
        self.live_after = 0
        self.alias: trainer_service_pb2.GetAliasResponse | None = None
        self.lose_answer = False
        self.templates = {"answer"}
        self.paused = False

    async def called(self, request: object, context: grpc.aio.ServicerContext) -> None:
        self.calls += 1
        self.requests.append(request)
        if self.failures:
            await context.abort(self.failures.pop(0), "as the test says")

    async def Generate(self, request, context):
        await self.called(request, context)
        model_version = self.model_version or ("Base" if request.adapter in ("", "base") else request.adapter)
        if self.live_after and self.calls >= self.live_after:
            model_version = str(NAME)
        header = router_service_pb2.GenerateHeader(
            model_version=model_version, degraded_reason=self.degraded_reason, prompt_version="answer@v3"
        )
        yield router_service_pb2.GenerateResponse(header=header)
        yield router_service_pb2.GenerateResponse(text="nine ")
        yield router_service_pb2.GenerateResponse(text="days", finish_reason="stop")

    async def LoadAdapter(self, request, context):
        await self.called(request, context)
        return llm_admin_service_pb2.LoadAdapterResponse()

    async def UnloadAdapter(self, request, context):
        await self.called(request, context)
        return llm_admin_service_pb2.UnloadAdapterResponse()

    async def ScoreAnswer(self, request, context):
        await self.called(request, context)
        return llm_admin_service_pb2.ScoreAnswerResponse(log_likelihood=-2.0, num_tokens=4)

    async def ListAdapters(self, request, context):
        await self.called(request, context)
        return llm_admin_service_pb2.ListAdaptersResponse(base_hash="sha256:base")

    async def Assemble(self, request, context):
        await self.called(request, context)
        if request.template not in self.templates:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such template")
        text = " ".join([*(f"{passage.title}: {passage.text}" for passage in request.passages), request.question])
        return prompt_assembler_service_pb2.AssembleResponse(
            messages=[ChatMessage(role="system", content=request.template), ChatMessage(role="user", content=text)],
            degraded_reason=self.degraded_reason,
        )

    async def GetAlias(self, request, context):
        await self.called(request, context)
        if self.alias is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "never set")
        return self.alias

    async def SetAlias(self, request, context):
        await self.called(request, context)
        version = self.alias.version if self.alias is not None else 0
        if request.expected_version != version:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "at another version")
        self.alias = trainer_service_pb2.GetAliasResponse(target=request.target, version=version + 1)
        if self.lose_answer:
            self.lose_answer = False
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return trainer_service_pb2.SetAliasResponse(version=version + 1)

    async def GetStatus(self, request, context):
        await self.called(request, context)
        return trainer_service_pb2.GetStatusResponse(paused=self.paused)


@pytest.fixture
async def peers() -> Peers:
    return Peers()


@pytest.fixture
async def channel(peers: Peers) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(
        type("R", (router_service_pb2_grpc.RouterServiceServicer,), {"Generate": staticmethod(peers.Generate)})(), server
    )
    llm_admin_service_pb2_grpc.add_LlmAdminServiceServicer_to_server(
        type(
            "L",
            (llm_admin_service_pb2_grpc.LlmAdminServiceServicer,),
            {name: staticmethod(getattr(peers, name)) for name in ("LoadAdapter", "UnloadAdapter", "ScoreAnswer", "ListAdapters")},
        )(),
        server,
    )
    prompt_assembler_service_pb2_grpc.add_PromptAssemblerServiceServicer_to_server(
        type("P", (prompt_assembler_service_pb2_grpc.PromptAssemblerServiceServicer,), {"Assemble": staticmethod(peers.Assemble)})(), server
    )
    methods = {name: staticmethod(getattr(peers, name)) for name in ("GetAlias", "SetAlias", "GetStatus")}
    trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
        type("T", (trainer_service_pb2_grpc.TrainerServiceServicer,), methods)(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    opened = open_channel(f"127.0.0.1:{port}")
    yield opened
    await opened.close()
    await server.stop(0)


RETRIES = Retries(attempts=3, first_pause_s=0.01)


def serving(channel: grpc.aio.Channel, *, live_timeout_s: float = 5.0) -> GrpcServing:
    return GrpcServing(
        channel, channel, base_name="Base", max_answer_tokens=48, load_timeout_s=5.0, live_timeout_s=live_timeout_s, retries=RETRIES
    )


async def test_an_answer_is_asked_for_pinned_greedy_and_with_its_context(peers, channel):
    assert await serving(channel).answer("helpdesk", replace(ASKED, context=(Passage("t", "x"),)), str(NAME)) == NINE_DAYS
    request = peers.requests[0]
    assert (request.task, request.question, request.adapter, request.retrieve) == ("helpdesk", "How long?", str(NAME), False)
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.reproducible) == (0.0, 48, True)
    assert [(passage.title, passage.text) for passage in request.context] == [("t", "x")]
    assert await serving(channel).answer("helpdesk", ASKED, "base") == NINE_DAYS


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_version", "Base--helpdesk--v1", "Base--helpdesk--v2 was asked for, but Base--helpdesk--v1 answered"),
        ("degraded_reason", "prompt_assembler_unavailable", r"is degraded \(prompt_assembler_unavailable\)"),
    ],
)
async def test_an_answer_of_another_model_or_another_prompt_is_never_judged(peers, channel, field, value, message):
    setattr(peers, field, value)
    with pytest.raises(WrongModel, match=message):
        await serving(channel).answer("helpdesk", ASKED, str(NAME))
    assert peers.calls == 3


async def test_what_may_pass_is_tried_again_and_what_may_not_is_not(peers, channel):
    peers.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert await serving(channel).answer("helpdesk", ASKED, "base") == NINE_DAYS
    peers.failures = [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(InvalidInput, match="the router did not answer: INVALID_ARGUMENT: as the test says"):
        await serving(channel).answer("helpdesk", ASKED, "base")
    assert peers.calls == 4


async def test_passages_are_searched_for_where_the_question_says_so(peers, channel):
    await serving(channel).answer("helpdesk", replace(ASKED, retrieve=True), "base")
    assert peers.requests[0].retrieve


async def test_a_reference_answer_has_the_mean_probability_of_its_tokens(peers, channel):
    messages = (Message("user", "How long?"),)
    assert await serving(channel).likelihood(messages, "nine days", str(NAME)) == pytest.approx(math.exp(-0.5))
    request = peers.requests[0]
    assert (request.answer, request.adapter, request.messages[0].content) == ("nine days", str(NAME), "How long?")
    await serving(channel).likelihood(messages, "nine days", "base")
    assert peers.requests[1].adapter == ""
    assert await serving(channel).base_hash() == "sha256:base"


async def test_an_llm_that_scores_nothing_is_asked_once_and_not_believed_to_be_down(peers, channel):
    peers.failures = [grpc.StatusCode.UNIMPLEMENTED]
    asked = serving(channel)
    assert await asked.likelihood((), "nine days", "base") is None
    assert await asked.likelihood((), "nine days", "base") is None
    assert peers.calls == 1


async def test_loading_names_the_adapter_and_says_what_the_llm_said(peers, channel):
    await serving(channel).load(NAME)
    assert peers.requests[0].name == str(NAME)
    peers.failures = [grpc.StatusCode.FAILED_PRECONDITION]
    with pytest.raises(Conflict, match="the llm did not load Base--helpdesk--v2: FAILED_PRECONDITION"):
        await serving(channel).load(NAME)
    await serving(channel).unload(NAME)


async def test_an_adapter_is_live_once_the_router_answers_with_it(peers, channel):
    peers.live_after = 3
    assert await serving(channel).wait_live("helpdesk", NAME)
    assert peers.calls == 3
    assert (peers.requests[0].adapter, peers.requests[0].sampling.max_tokens) == ("", 1)
    peers.live_after = 0
    assert not await serving(channel, live_timeout_s=0.3).wait_live("helpdesk", NAME)


async def test_a_prompt_comes_from_the_tasks_template_or_from_the_one_for_all(peers, channel):
    prompts = GrpcPrompts(channel, RETRIES)
    expected = Message("user", "t: x How long?")
    assert await prompts.assemble("helpdesk", "How long?", [Passage("t", "x")]) == (Message("system", "answer"), expected)
    peers.templates.add("helpdesk")
    assert await prompts.assemble("helpdesk", "How long?", [Passage("t", "x")]) == (Message("system", "helpdesk"), expected)


async def test_a_degraded_prompt_is_not_trained_on(peers, channel):
    peers.degraded_reason = "tokens_estimated"
    with pytest.raises(Unavailable, match=r"degraded \(tokens_estimated\)"):
        await GrpcPrompts(channel, RETRIES).assemble("answer", "How long?", [])


def control(channel: grpc.aio.Channel) -> GrpcControl:
    return GrpcControl(channel, actor="tuner/test", retries=RETRIES)


async def test_an_alias_that_was_never_set_means_the_base(peers, channel):
    assert await control(channel).live("helpdesk") == Live("base", 0)
    await control(channel).set_live("helpdesk", NAME, 0)
    assert await control(channel).live("helpdesk") == Live(str(NAME), 1)
    assert peers.requests[1].actor == "tuner/test"
    assert peers.requests[1].alias == "llm/helpdesk/production"


async def test_a_move_whose_answer_was_lost_is_not_taken_for_somebody_elses(peers, channel):
    peers.lose_answer = True
    await control(channel).set_live("helpdesk", NAME, 0)
    assert peers.alias == trainer_service_pb2.GetAliasResponse(target=str(NAME), version=1)


async def test_a_move_by_somebody_else_is_a_conflict_that_names_it(peers, channel):
    peers.alias = trainer_service_pb2.GetAliasResponse(target="Base--helpdesk--v7", version=4)
    with pytest.raises(Conflict, match="was moved to Base--helpdesk--v7 while Base--helpdesk--v2 was judged"):
        await control(channel).set_live("helpdesk", NAME, 3)


async def test_what_the_trainer_does_not_allow_is_told_in_its_words(peers, channel):
    peers.failures = [grpc.StatusCode.FAILED_PRECONDITION]
    with pytest.raises(Conflict, match="was not moved to Base--helpdesk--v2: FAILED_PRECONDITION"):
        await control(channel).set_live("helpdesk", NAME, 0)


async def test_whether_learning_is_paused_is_asked_and_not_guessed(peers, channel):
    peers.paused = True
    assert await control(channel).is_paused()
    peers.failures = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(Unavailable, match="whether learning is paused is not known"):
        await control(channel).is_paused()


async def test_a_server_that_is_down_is_unavailable_after_the_last_attempt():
    channel = open_channel("127.0.0.1:1")
    with pytest.raises(Unavailable):
        await serving(channel).answer("helpdesk", ASKED, "base")
    with pytest.raises(Unavailable):
        await GrpcPrompts(channel, RETRIES).assemble("answer", "q", [])
    await channel.close()
