"""How the demo counts what became of its calls, against a real gRPC server that refuses and cuts as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from loadtests.demo.answers import AnswerClient, Question
from loadtests.demo.client import MeshClient
from services.common.platform.errors import ConfigurationError
from tests.client_fakes import HEADER, Hang, Refusal, ScriptedMesh, start_mesh
from tests.limits import seconds
from tunemesh_client import Feedback

QUESTION = Question(text="When?", user_id="u", task="helpdesk", retrieve=True, source="catalog", max_tokens=9)


@pytest.fixture
def mesh() -> ScriptedMesh:
    return ScriptedMesh()


@pytest.fixture
async def address(mesh) -> AsyncIterator[str]:
    server, port = await start_mesh(mesh)
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def client(address) -> AsyncIterator[MeshClient]:
    client = MeshClient(router=address, collector=address, kafka="127.0.0.1:1", call_deadline_s=seconds(30))
    yield client
    await client.stop()


@pytest.fixture
async def answers(address) -> AsyncIterator[AnswerClient]:
    answers = AnswerClient(address)
    yield answers
    await answers.close()


async def test_retries_are_counted_and_only_the_attempt_that_succeeded_is_timed(mesh, client):
    mesh.script = [Refusal(), Refusal()]
    found = await client.recommend("u", ["a"], limit=1, idempotency_key="demo/u/a")
    assert found is not None and found.items[0].item_id == "a"
    assert {seen.request.idempotency_key for seen in mesh.seen} == {"demo/u/a"}
    counts = client.counts
    assert (counts.succeeded, counts.retried, counts.failed) == (1, 2, 0) and "UNAVAILABLE: not now" in counts.last_error
    assert len(counts.recommend_latency_ms) == 1 and counts.recommend_latency_ms[0] == found.latency_s * 1e3


async def test_what_no_retry_helps_counts_as_failed_and_gives_none(mesh, client):
    mesh.script = [Refusal(grpc.StatusCode.INVALID_ARGUMENT, "user_id")] * 2
    assert await client.recommend("u", ["a"], limit=1, idempotency_key="k") is None
    assert await client.submit_feedback(Feedback(request_id="r", user_id="u", kind="rating", item_id="a")) is None
    assert (client.counts.succeeded, client.counts.retried, client.counts.failed) == (0, 0, 2)
    assert client.counts.recommend_latency_ms == []


async def test_feedback_returns_when_it_was_accepted(client):
    assert await client.submit_feedback(Feedback(request_id="r", user_id="u", kind="rating", item_id="a")) == 5


async def test_a_broker_that_is_down_is_one_line(address, monkeypatch):
    monkeypatch.setattr("loadtests.demo.client._CONNECT_LIMIT_S", 0.5)
    client = MeshClient(router=address, collector=address, kafka="127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"the broker at 127\.0\.0\.1:1 cannot be reached"):
        await client.start()
    await client.stop()


async def test_an_answer_that_is_cut_is_asked_again_from_the_start(mesh, answers):
    mesh.script = [[HEADER, "It ", Refusal()]]
    heard: list[str] = []
    answer = await answers.ask(QUESTION, on_text=heard.append)
    assert (answer.text, answer.request_id, answer.titles) == ("It is 1995.", "g2", ["A"])
    assert heard == ["It ", "It ", "is ", "1995."] and (answers.retried, answers.failed) == (1, 0)
    assert 0 < answer.ttft_ms == answers.ttft_percentiles()["p50"]
    request = mesh.seen[1].request
    assert (request.question, request.task, request.retrieve, request.retrieval_source, request.sampling.max_tokens) == (
        "When?",
        "helpdesk",
        True,
        "catalog",
        9,
    )


async def test_after_three_tries_there_is_no_answer(mesh, answers):
    mesh.script = [Refusal()] * 3
    with pytest.raises(RuntimeError, match=r"no answer to 'When\?': .*UNAVAILABLE: not now"):
        await answers.ask(QUESTION)
    assert (len(mesh.seen), answers.retried, answers.failed) == (3, 2, 1)


async def test_an_answer_that_took_too_long_is_not_asked_again(mesh, answers, monkeypatch):
    monkeypatch.setattr(answers._client, "_generate_deadline_s", 0.5)
    mesh.script = [Hang()]
    with pytest.raises(RuntimeError, match="DEADLINE_EXCEEDED"):
        await answers.ask(QUESTION)
    assert len(mesh.seen) <= 1 and answers.retried == 0
