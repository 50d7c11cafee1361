"""Tokens counted by the llm service, on a real gRPC server, and what holds while it does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tunemesh.llm.v1 import llm_service_pb2, llm_service_pb2_grpc

from services.common.events.chat import Message
from services.common.language.token_bound import TOKENS_PER_PROMPT, TOKENS_PER_TURN
from services.prompt_assembler.served_tokens import ServedTokens


class CountingModel(llm_service_pb2_grpc.LlmServiceServicer):
    """Counts a token a character, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.is_broken = False

    def CountTokens(self, request, context):
        self.calls.append(list(request.texts))
        if self.is_broken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        assert len(request.texts) <= 256
        return llm_service_pb2.CountTokensResponse(counts=[len(text) for text in request.texts])


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def tokens(model) -> Iterator[ServedTokens]:
    server = grpc.server(ThreadPoolExecutor(2))
    llm_service_pb2_grpc.add_LlmServiceServicer_to_server(model, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tokens = ServedTokens(f"127.0.0.1:{port}")
    yield tokens
    tokens.close()
    server.stop(None).wait()


def turns(*texts: str) -> list[Message]:
    return [Message(role="user", content=text) for text in texts]


def of_format(num_turns: int) -> int:
    return TOKENS_PER_TURN * num_turns + TOKENS_PER_PROMPT


def test_texts_are_counted_by_the_model_and_each_once(model, tokens):
    assert tokens.count(turns("影片可以保留九天。", "Why?")) == 9 + 4 + of_format(2)
    assert tokens.count(turns("影片可以保留九天。", "How?")) == 9 + 4 + of_format(2)
    assert model.calls == [["影片可以保留九天。", "Why?"], ["How?"]]
    assert not tokens.is_exact


def test_many_and_large_texts_are_counted_in_several_calls(model, tokens):
    texts = [f"{number} " + "x" * 1_000 for number in range(300)]
    assert tokens.count(turns(*texts)) == sum(map(len, texts)) + of_format(300)
    assert sum(map(len, model.calls)) == 300
    assert all(sum(map(len, call)) <= 128 * 1024 for call in model.calls)


def test_while_the_llm_does_not_answer_bytes_are_the_bound_and_it_is_left_alone(model, tokens):
    model.is_broken = True
    assert tokens.count(turns("九天")) == 6 + of_format(1)
    model.is_broken = False
    assert tokens.count(turns("九天")) == 6 + of_format(1)
    assert len(model.calls) == 1


def test_a_text_that_is_too_large_for_a_call_is_bounded(model, tokens):
    assert tokens.count(turns("九" * 100_000, "a")) == 300_000 + 1 + of_format(2)
    assert model.calls == [["a"]]


def test_nobody_there_is_no_error():
    tokens = ServedTokens("127.0.0.1:1")
    assert tokens.count(turns("abc")) == 3 + of_format(1)
    tokens.close()
