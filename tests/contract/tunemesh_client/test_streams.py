"""Streamed answers, by every way of calling, from a real gRPC server that refuses, hangs and cuts as it is told."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tests.client_fakes import HEADER, Hang, Refusal
from tests.limits import seconds
from tunemesh_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Incomplete,
    Passage,
    RetryPolicy,
    Sampling,
    TunemeshError,
    Turn,
    Unavailable,
)


async def pieces_of(stream: Any) -> list[str]:
    return [piece async for piece in stream]


async def test_an_answer_comes_in_pieces_and_says_where_it_is_from(mesh, make):
    stream = make().generate("u", "When?")
    assert (stream.request_id, stream.finish_reason, stream.text, mesh.seen) == ("", "", "", [])
    assert await stream.__anext__() == "It "
    assert (stream.request_id, stream.model_version, stream.prompt_version, stream.variant) == ("g1", "Smol", "answer@v3", "default")
    assert (stream.degraded_reason, stream.finish_reason, stream.text) == ("retrieval_unavailable", "", "It ")
    assert await pieces_of(stream) == ["is ", "1995."]
    assert (stream.text, stream.finish_reason, stream.completion_tokens, stream.attempts) == ("It is 1995.", "stop", 3, 1)
    assert await pieces_of(stream) == []


async def test_an_answer_can_be_read_whole(make):
    answer = await make().generate("u", "When?").read()
    assert (answer.text, answer.request_id, answer.finish_reason) == ("It is 1995.", "g1", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (11, 3)
    assert answer.passages == (Passage(text="Toy Story, 1995", title="A", passage_id="docs/a#1", score=0.5),)


async def test_everything_that_is_asked_reaches_the_server(mesh, make):
    await (
        make()
        .generate(
            "u",
            "When?",
            task="helpdesk",
            history=[Turn("user", "Hello")],
            context=[Passage(text="1995", title="A")],
            retrieve=True,
            retrieval_source="files",
            sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=["\n"]),
            adapter="base",
        )
        .read()
    )
    request = mesh.seen[0].request
    assert (request.user_id, request.question, request.task, request.retrieve) == ("u", "When?", "helpdesk", True)
    assert (request.retrieval_source, request.adapter) == ("files", "base")
    assert [(turn.role, turn.content) for turn in request.history] == [("user", "Hello")]
    assert [(passage.title, passage.text) for passage in request.context] == [("A", "1995")]
    sampling = request.sampling
    assert (sampling.temperature, round(sampling.top_p, 3), sampling.max_tokens, sampling.seed, list(sampling.stop)) == (
        0.5,
        0.9,
        7,
        3,
        ["\n"],
    )


@pytest.mark.parametrize("first", [Refusal(), [HEADER, Refusal()], [HEADER]], ids=["refused", "cut after the header", "no last message"])
async def test_a_stream_that_fails_before_its_first_piece_is_repeated(mesh, make, first):
    mesh.script = [first]
    stream = make().generate("u", "When?")
    assert "".join(await pieces_of(stream)) == stream.text == "It is 1995."
    assert (stream.request_id, stream.attempts, len(mesh.seen)) == ("g2", 2, 2)


async def test_a_stream_that_is_cut_half_way_is_not_repeated(mesh, make):
    mesh.script = [[HEADER, "It ", "is ", Refusal(details="the answer was cut after 2 tokens")]]
    stream = make().generate("u", "When?")
    got: list[str] = []
    with pytest.raises(Unavailable, match="the answer was cut after 2 tokens") as caught:
        async for piece in stream:
            got.append(piece)
    assert got == ["It ", "is "] and caught.value.retry_helps and caught.value.request.startswith("Generate at ")
    assert (stream.text, stream.request_id, stream.finish_reason, len(mesh.seen)) == ("It is ", "g1", "", 1)
    assert await pieces_of(stream) == []


async def test_a_stream_without_its_last_message_is_incomplete(mesh, make):
    mesh.script = [[HEADER, "It "]]
    stream = make().generate("u", "When?")
    with pytest.raises(Incomplete) as caught:
        await stream.read()
    assert (caught.value.status, caught.value.retry_helps, stream.text) == ("INCOMPLETE", True, "It ")


async def test_a_refused_stream_is_raised_when_no_retry_helps_or_none_is_allowed(mesh, make):
    mesh.script = [Refusal(grpc.StatusCode.NOT_FOUND, "adapter"), Refusal()]
    with pytest.raises(TunemeshError, match="NOT_FOUND: adapter"):
        await make().generate("u", "When?").read()
    with pytest.raises(Unavailable):
        await make(retry=RetryPolicy(retries=0)).generate("u", "When?").read()
    assert len(mesh.seen) == 2


async def test_a_stream_that_stalls_ends_with_its_deadline(mesh, make):
    mesh.script = [[HEADER, "It ", Hang()]]
    stream = make().generate("u", "When?", deadline_s=2.0)
    with pytest.raises(DeadlineExceeded):
        await stream.read()
    assert stream.text in ("It ", "") and len(mesh.seen) <= 1  # "": the machine was too slow for the first piece


async def test_leaving_a_stream_early_stops_the_model(mesh, make):
    mesh.script = [[HEADER, "It ", Hang()]]
    stream = make().generate("u", "When?", deadline_s=seconds(60))
    assert await stream.__anext__() == "It "
    async with asyncio.timeout(seconds(30)):
        while not mesh.hanging:  # its last piece may be here before it waits for the next
            await asyncio.sleep(0.01)
        stream.close()
        while not mesh.cancelled:
            await asyncio.sleep(0.01)
    assert await pieces_of(stream) == [] and stream.text == "It "


async def test_a_stream_can_be_left_while_another_task_reads_it(mesh, make):
    mesh.script = [[HEADER, "It ", Hang()]]
    stream = make().generate("u", "When?", deadline_s=seconds(60))
    await stream.__anext__()
    reading = asyncio.ensure_future(pieces_of(stream))
    await asyncio.sleep(0)
    stream.close()
    assert await asyncio.wait_for(reading, seconds(30)) == []


async def test_both_clients_and_their_streams_are_context_managers(mesh, port):
    def blocking() -> str:
        with Client(f"127.0.0.1:{port}") as client, client.generate("u", "When?") as stream:
            return next(stream)

    assert await asyncio.to_thread(blocking) == "It "
    async with AsyncClient(f"127.0.0.1:{port}") as client, client.generate("u", "When?") as stream:
        assert await anext(stream) == "It "
