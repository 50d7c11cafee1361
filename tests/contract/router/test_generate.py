"""RouterService.Generate over real gRPC: the router in process, and a retriever, a prompt assembler and an llm behind real servers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from tunemesh.common.v1 import chat_pb2, passage_pb2
from tunemesh.router.v1 import router_service_pb2, router_service_pb2_grpc

from services.common.platform import telemetry
from services.common.platform.grpc_server import GrpcServer
from services.router.generation import Generation
from services.router.server import AnswerClients, make_admission, make_router, servicer_of
from services.router.settings import RouterSettings
from tests.answer_fakes import BASE, AnswerServers
from tests.edge_fakes import FakeExposureLog, FakeRecommender
from tests.limits import seconds

ADAPTER = f"{BASE}--helpdesk--v1"


@dataclass
class FakeAdapters:
    of_task: dict[str, str] | None = field(default_factory=dict)

    def live(self, task: str) -> str | None:
        return None if self.of_task is None else self.of_task.get(task, "")


@dataclass
class FakeGenerationLog:
    generations: list[Generation] = field(default_factory=list)

    def append(self, generation: Generation) -> None:
        self.generations.append(generation)


class World:
    """The router before its three services; it waits for them for long, that a busy machine makes no helper look like a dead one."""

    def __init__(self, **settings: int) -> None:
        self._own = {"retriever_timeout_ms": 20_000, "prompt_assembler_timeout_ms": 20_000, "llm_reconnect_ms": 20_000} | settings
        self.servers = AnswerServers()
        self.adapters = FakeAdapters()
        self.log = FakeGenerationLog()

    async def __aenter__(self) -> World:
        await self.servers.start()
        settings = RouterSettings(
            port=0,
            drain_grace_ms=100,
            generate_max_tokens=100,
            **self._own,
            **self.servers.settings,
        )
        signals = telemetry.disabled("router")
        self._clients = AnswerClients(settings)
        generator = self._clients.generator(settings, self.adapters, self.log)
        router = make_router(settings, FakeRecommender(), FakeExposureLog(), make_admission(settings))
        self._server = GrpcServer(settings, signals, [servicer_of(router, generator, signals)])
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{await self._server.start()}")
        self.stub = router_service_pb2_grpc.RouterServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await self._server.drain()
        await self._clients.close()
        await self.servers.stop()

    def call(self, *, timeout: float | None = 60.0, **fields: Any) -> Any:
        return self.stub.Generate(router_service_pb2.GenerateRequest(**{"user_id": "u", "question": "When?", **fields}), timeout=timeout)

    async def ask(self, **fields: Any) -> Answer:
        return Answer([response async for response in self.call(**fields)])

    async def failure(self, **fields: Any) -> tuple[grpc.StatusCode, str, list[str]]:
        texts: list[str] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in self.call(**fields):
                texts.append(response.text)
        return caught.value.code(), caught.value.details() or "", texts


class Answer:
    def __init__(self, responses: list[Any]) -> None:
        self.responses = responses
        self.header = responses[0].header
        self.text = "".join(response.text for response in responses)
        self.last = responses[-1]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as started:
        yield started


async def test_an_answer_begins_with_its_ids_streams_its_text_and_ends_with_what_it_cost(world):
    answer = await world.ask(retrieve=True)
    header = answer.header
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-.*", header.request_id)
    assert (header.variant, header.model_version, header.prompt_version, header.degraded_reason) == ("default", BASE, "answer@v3", "")
    assert answer.responses[0].text == "" and not answer.responses[1].HasField("header")
    assert [response.text for response in answer.responses[1:-1]] == ["Heat ", "is ", "from ", "1995."]
    assert (answer.last.finish_reason, answer.last.usage.prompt_tokens, answer.last.usage.completion_tokens) == ("stop", 11, 4)
    assert [passage.passage_id for passage in header.passages] == ["catalog:2", "catalog:1"]  # the prompt's order
    assert header.passages[0].text == "made in 1992"


async def test_an_answer_is_logged_whole(world):
    answer = await world.ask(retrieve=True, task="helpdesk", sampling=chat_pb2.Sampling(max_tokens=9, stop=["END"]))
    (generation,) = world.log.generations
    assert (generation.header.request_id, generation.answer, generation.finish_reason) == (answer.header.request_id, answer.text, "stop")
    assert (generation.question.task, generation.question.user_id, generation.usage.completion_tokens) == ("helpdesk", "u", 4)
    assert generation.messages[0].content.endswith("When?") and "made in 1991" in generation.messages[0].content
    assert generation.started_at_ms <= generation.first_token_at_ms <= generation.finished_at_ms
    sampling = world.servers.llm.requests[0].sampling
    assert (sampling.max_tokens, list(sampling.stop), world.servers.llm.requests[0].request_id) == (9, ["END"], answer.header.request_id)


async def test_the_first_text_leaves_before_the_last_one_is_made(world):
    world.servers.llm.goes_on.clear()
    call = world.call()
    await call.read()
    assert (await call.read()).text == "Heat " and world.servers.llm.num_streamed == 1
    world.servers.llm.goes_on.set()
    assert (await call.read()).text == "is "
    call.cancel()


async def test_context_of_the_caller_replaces_retrieval_and_gets_ids_where_it_has_none(world):
    context = [passage_pb2.Passage(title="A", text="a"), passage_pb2.Passage(passage_id="mine", text="b")]
    answer = await world.ask(retrieve=True, context=context)
    assert world.servers.retriever.requests == []
    assert [passage.passage_id for passage in answer.header.passages] == ["mine", "context:1"]
    assert not (await world.ask()).header.passages and world.servers.retriever.requests == []


async def test_the_retriever_is_asked_for_the_source_and_for_no_more_than_it_takes(world):
    await world.ask(retrieve=True, retrieval_source="catalog", question="é" * 4_000)
    (request,) = world.servers.retriever.requests
    assert (request.source, request.limit, request.query) == ("catalog", 4, "é" * 1_024)


async def test_history_reaches_the_assembler(world):
    turns = [chat_pb2.ChatMessage(role="user", content="Hi"), chat_pb2.ChatMessage(role="assistant", content="Hello")]
    await world.ask(history=turns)
    assert list(world.servers.assembler.requests[0].history) == turns


async def test_a_task_with_a_template_of_its_own_uses_it_and_others_are_asked_for_once(world):
    world.servers.assembler.templates["helpdesk"] = "helpdesk@v1"
    assert (await world.ask(task="helpdesk")).header.prompt_version == "helpdesk@v1"
    for _ in range(3):
        assert (await world.ask(task="other")).header.prompt_version == "answer@v3"
    assert [request.template for request in world.servers.assembler.requests] == ["helpdesk", "other", "answer", "answer", "answer"]


async def test_the_live_adapter_of_the_task_answers_and_no_other_task_gets_it(world):
    world.adapters.of_task = {"helpdesk": ADAPTER}
    world.servers.llm.adapters.add(ADAPTER)
    live = (await world.ask(task="helpdesk")).header
    assert (live.model_version, live.variant, live.degraded_reason) == (ADAPTER, "default", "")
    assert (await world.ask()).header.model_version == BASE


async def test_a_pinned_adapter_answers_and_says_that_it_was_pinned(world):
    world.adapters.of_task = {"helpdesk": ADAPTER}
    world.servers.llm.adapters |= {ADAPTER, f"{BASE}--helpdesk--v2"}
    pinned = (await world.ask(task="helpdesk", adapter=f"{BASE}--helpdesk--v2")).header
    assert (pinned.model_version, pinned.variant) == (f"{BASE}--helpdesk--v2", "pinned")
    base = (await world.ask(task="helpdesk", adapter="base")).header
    assert (base.model_version, base.variant) == (BASE, "pinned")


async def test_a_pinned_adapter_that_is_not_loaded_is_never_replaced_by_another_model(world):
    code, detail, texts = await world.failure(adapter="nothing")
    assert code is grpc.StatusCode.NOT_FOUND and "nothing is not loaded" in detail and texts == []


async def test_a_live_adapter_that_is_not_loaded_is_replaced_by_the_base_and_the_answer_says_so(world):
    world.adapters.of_task = {"helpdesk": ADAPTER}
    header = (await world.ask(task="helpdesk")).header
    assert (header.model_version, header.degraded_reason) == (BASE, "adapter_unavailable")


async def test_without_control_v1_the_base_answers_and_says_so(world):
    world.adapters.of_task = None
    assert (await world.ask()).header.degraded_reason == "aliases_unknown"


async def test_without_retriever_and_assembler_the_model_still_answers_and_says_what_is_missing(world):
    await world.servers.stop_one("retriever")
    await world.servers.stop_one("assembler")
    answer = await world.ask(retrieve=True)
    assert answer.header.degraded_reason == "retrieval_unavailable,prompt_assembler_unavailable"
    assert (answer.text, answer.header.prompt_version) == ("Heat is from 1995.", "")
    messages = world.servers.llm.requests[0].messages
    assert [message.role for message in messages] == ["system", "user"] and messages[1].content == "When?"


async def test_the_built_in_prompt_has_the_passages_and_the_turns(world):
    await world.servers.stop_one("assembler")
    answer = await world.ask(retrieve=True, history=[chat_pb2.ChatMessage(role="user", content="Hi")])
    assert len(answer.header.passages) == 4
    messages = world.servers.llm.requests[0].messages
    assert messages[1].content == "Hi" and messages[2].content.startswith("Film 1\nmade in 1991") and messages[2].content.endswith("When?")


@pytest.mark.parametrize(("name", "reason"), [("retriever", "retrieval_unavailable"), ("assembler", "prompt_assembler_unavailable")])
async def test_a_helper_that_hangs_costs_its_own_short_time_only(name, reason):
    async with World(**{{"retriever": "retriever_timeout_ms", "assembler": "prompt_assembler_timeout_ms"}[name]: 300}) as world:
        getattr(world.servers, name).delay_s = 60.0
        started = time.monotonic()
        assert (await world.ask(retrieve=True)).header.degraded_reason == reason
        assert time.monotonic() - started < 20.0


async def test_what_a_helper_says_about_its_own_degradation_is_passed_on(world):
    world.servers.assembler.degraded_reason = "labels_unavailable"
    assert (await world.ask()).header.degraded_reason == "labels_unavailable"


async def test_a_question_that_does_not_fit_its_prompt_is_the_callers_error(world):
    world.servers.assembler.failures.append((grpc.StatusCode.INVALID_ARGUMENT, "question: it has 900 tokens, 512 fit"))
    assert (await world.failure())[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "question: it has 900 tokens, 512 fit")


async def test_an_llm_that_is_down_is_waited_for_once_and_then_unavailable():
    async with World(llm_reconnect_ms=1_500) as world:
        await world.servers.stop_one("llm")
        started = time.monotonic()
        code, detail, texts = await world.failure()
        assert code is grpc.StatusCode.UNAVAILABLE and "llm" in detail and texts == []
        assert 1.0 < time.monotonic() - started < 30.0
        assert world.log.generations == []


async def test_an_llm_that_comes_back_in_time_is_not_noticed(world):
    await world.servers.stop_one("llm")
    answer = asyncio.ensure_future(world.ask())
    await asyncio.sleep(0.3)
    await world.servers.start_one("llm")
    assert (await answer).text == "Heat is from 1995."


@pytest.mark.parametrize(
    ("status", "expected", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.INTERNAL, grpc.StatusCode.INTERNAL, 1),
    ],
)
async def test_a_refusal_of_the_llm_before_the_first_text_keeps_its_meaning(world, status, expected, attempts):
    world.servers.llm.failures = [(status, "no"), (status, "no")]
    assert (await world.failure())[0] is expected
    assert len(world.servers.llm.requests) == attempts


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_stream_that_breaks_is_unavailable_and_says_after_how_much(world, status):
    world.servers.llm.breaks, world.servers.llm.break_status = [2], status
    code, detail, texts = await world.failure()
    assert code is grpc.StatusCode.UNAVAILABLE and detail.startswith("the answer was cut after 2 tokens")
    assert texts == ["", "Heat ", "is "] and len(world.servers.llm.requests) == 1
    (generation,) = world.log.generations
    assert (generation.finish_reason, generation.answer, generation.usage.completion_tokens) == ("error", "Heat is ", 2)


async def test_a_stream_that_breaks_before_its_first_text_is_tried_again(world):
    world.servers.llm.breaks = [0]
    assert (await world.ask()).text == "Heat is from 1995."
    assert len(world.servers.llm.requests) == 2 and len(world.log.generations) == 1


async def test_a_stream_that_breaks_twice_before_its_first_text_is_unavailable(world):
    world.servers.llm.breaks = [0, 0]
    code, _, texts = await world.failure()
    assert code is grpc.StatusCode.UNAVAILABLE and texts == [] and world.log.generations == []


async def test_a_caller_that_goes_away_stops_the_model_and_the_answer_is_logged_as_cancelled(world):
    world.servers.llm.word_delay_s = 0.1
    world.servers.llm.words = ["word "] * 2_000
    call = world.call()
    for _ in range(3):
        await call.read()
    call.cancel()
    await asyncio.wait_for(world.servers.llm.cut_short.wait(), seconds(30))
    async with asyncio.timeout(seconds(30)):
        while not world.log.generations:
            await asyncio.sleep(0.01)
    assert (world.log.generations[0].finish_reason, world.servers.llm.num_streamed < 400) == ("cancelled", True)


async def test_a_call_cancelled_while_text_flows_leaves_no_complaint_in_the_log(world, caplog):
    world.servers.llm.words = ["x"] * 20_000
    for _ in range(5):
        call = world.call()
        for _ in range(5):
            await call.read()
        call.cancel()
    async with asyncio.timeout(seconds(60)):
        while len(world.log.generations) < 5:
            await asyncio.sleep(0.01)
    assert {generation.finish_reason for generation in world.log.generations} == {"cancelled"}
    # gRPC's poller may still wake the loop of an earlier test, which is closed: that says nothing about these calls.
    said = [record for record in caplog.records if "PollerCompletionQueue" not in record.getMessage()]
    assert [record.getMessage() for record in said if record.exc_info or "Failed to detach context" in record.getMessage()] == []


@pytest.mark.parametrize(
    ("word_delay_s", "num_words", "timeout_s"), [(0.1, 2_000, 3), (0.0, 200_000, 1)], ids=["slow text", "text without a pause"]
)
async def test_the_callers_deadline_bounds_the_model(world, word_delay_s, num_words, timeout_s):
    world.servers.llm.word_delay_s = word_delay_s
    world.servers.llm.words = ["word "] * num_words
    code, _, texts = await world.failure(timeout=seconds(timeout_s))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 1 <= len(texts) < num_words
    await asyncio.wait_for(world.servers.llm.cut_short.wait(), seconds(30))


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"user_id": ""}, "user_id"),
        ({"question": "  "}, "question"),
        ({"question": "x" * 8_193}, "question: it has 8193 bytes"),
        ({"task": "Help Desk"}, "task"),
        ({"retrieval_source": "../etc"}, "retrieval_source"),
        ({"adapter": "x" * 129}, "adapter"),
        ({"history": [chat_pb2.ChatMessage(role="user")] * 33}, "history: 33"),
        ({"history": [chat_pb2.ChatMessage(role="system", content="x")]}, "history[0].role"),
        ({"context": [passage_pb2.Passage(text="x")] * 33}, "context: 33"),
        ({"context": [passage_pb2.Passage(text="x" * 60_000)] * 5}, "context: 300000 bytes"),
        # Nor what the prompt assembler would refuse, under other names.
        ({"context": [passage_pb2.Passage(text="x" * 64_513)]}, "context[0].text: it has 64513 bytes"),
        ({"history": [chat_pb2.ChatMessage(role="user", content="x" * 32_769)]}, "history[0].content: it has 32769 bytes"),
        ({"sampling": chat_pb2.Sampling(temperature=2.5)}, "sampling.temperature"),
        ({"sampling": chat_pb2.Sampling(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": chat_pb2.Sampling(top_p=1.5)}, "sampling.top_p"),
        ({"sampling": chat_pb2.Sampling(max_tokens=101)}, "sampling.max_tokens"),
        ({"sampling": chat_pb2.Sampling(stop=["x"] * 9)}, "sampling.stop: 9"),
        ({"sampling": chat_pb2.Sampling(stop=[""])}, "sampling.stop"),
    ],
)
async def test_a_bad_request_is_invalid_argument_names_its_field_and_reaches_nobody(world, fields, detail):
    code, text, _ = await world.failure(**fields)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and detail in text
    assert world.servers.assembler.requests == world.servers.llm.requests == []


async def test_every_helper_sees_the_callers_trace(world):
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    request = router_service_pb2.GenerateRequest(user_id="u", question="When?", retrieve=True)
    async for _ in world.stub.Generate(request, timeout=seconds(60), metadata=(("traceparent", header),)):
        pass
    for fake in (world.servers.retriever, world.servers.assembler, world.servers.llm):
        assert fake.metadata["traceparent"] == header
