"""The client of Triton against a gRPC server that answers as a ranker does, well and badly."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common.platform.telemetry import disabled
from services.recommender.core import RankerUnavailable
from services.recommender.triton_ranker import TritonRanker

KEYS = np.array([5, -(1 << 63), (1 << 63) - 1])
SCORES = np.array([[0.5, 0.25], [0.125, 1.0], [0.0, 0.75]], dtype=np.float32)
FAR = 1e12


@dataclass
class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Keeps requests; answers with `tensors`, or with an error."""

    tensors: dict[str, tuple[str, np.ndarray]] = field(
        default_factory=lambda: {"VERSION": ("INT64", np.array([3, 41, 42])), "SCORES": ("FP32", SCORES)}
    )
    error: str = ""
    refuses: bytes = b"\x00"
    status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    requests: list[Any] = field(default_factory=list)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.error)
        if self.refuses in request.raw_input_contents[2]:
            await context.abort(self.status, "a block is bad")
        response = service_pb2.ModelInferResponse(model_name="ranker")
        for name, (datatype, values) in self.tensors.items():
            response.outputs.add(name=name, datatype=datatype, shape=values.shape)
            response.raw_output_contents.append(values.tobytes())
        return response


@pytest.fixture
async def answering():
    server = grpc.aio.server()
    servicer = Answering()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ranker = TritonRanker(f"127.0.0.1:{port}", num_tasks=2, timeout_s=30.0)
    await ranker._channel.channel_ready()
    yield servicer, ranker
    await ranker.close()
    await server.stop(None)


async def test_the_request_holds_the_tensors_and_the_answer_is_read_by_name(answering):
    servicer, ranker = answering
    scored = await ranker.score(-7, KEYS, b"\x01\x02block", FAR)
    assert (scored.scores_NT == SCORES).all()
    assert (scored.epoch, scored.seq_min, scored.seq_max) == (3, 41, 42)
    [request] = servicer.requests
    assert request.model_name == "ranker" and [output.name for output in request.outputs] == ["SCORES", "VERSION"]
    tensors = [(one.name, one.datatype, list(one.shape)) for one in request.inputs]
    assert tensors == [("USER_ID", "INT64", [1]), ("ITEM_IDS", "INT64", [3]), ("FEATURES", "UINT8", [7])]
    user, keys, block = request.raw_input_contents
    assert np.frombuffer(user, np.int64).tolist() == [-7]
    assert np.frombuffer(keys, np.int64).tolist() == KEYS.tolist() and block == b"\x01\x02block"
    assert "traceparent" not in request.parameters


async def test_the_span_of_the_request_goes_with_it(answering):
    servicer, ranker = answering
    with disabled().span("a", parent=f"00-{'1' * 32}-{'2' * 16}-01"):
        await ranker.score(7, KEYS, b"b", FAR)
    assert servicer.requests[0].parameters["traceparent"].string_param.startswith(f"00-{'1' * 32}-")


def scores_by_key(servicer: Answering, *keys: np.ndarray) -> None:
    """Let Triton answer with the lowest digit of every item's key."""
    all_keys = np.concatenate(keys)
    scores = np.column_stack([all_keys % 10, all_keys % 10 + 10]).astype(np.float32)
    servicer.tensors = {"VERSION": ("INT64", np.array([3, 41, 42])), "SCORES": ("FP32", scores)}


async def test_requests_of_one_moment_are_one_call_and_each_gets_its_rows(answering):
    servicer, ranker = answering
    keys = [np.arange(first, first + size) for first, size in ((11, 3), (22, 1), (33, 5))]
    scores_by_key(servicer, *keys)

    async def one(number: int) -> Any:
        with disabled().span("a", parent="" if number == 1 else f"00-{number + 1:032x}-{'2' * 16}-01"):
            return await ranker.score(-number, keys[number], b"block%d" % number, FAR)

    found = await asyncio.gather(*map(one, range(3)))
    for keys_N, scored in zip(keys, found, strict=True):
        assert scored.scores_NT[:, 0].tolist() == (keys_N % 10).tolist() and (scored.epoch, scored.seq_min, scored.seq_max) == (3, 41, 42)
    [request] = servicer.requests
    assert [(one.name, list(one.shape)) for one in request.inputs] == [("USER_ID", [3]), ("ITEM_IDS", [9]), ("FEATURES", [18])]
    users, items, blocks = request.raw_input_contents
    assert np.frombuffer(users, np.int64).tolist() == [0, -1, -2] and blocks == b"block0block1block2"
    assert np.frombuffer(items, np.int64).tolist() == np.concatenate(keys).tolist()
    first, second, third = request.parameters["traceparent"].string_param.split(",")
    assert (first[:35], third[:35]) == (f"00-{1:032x}", f"00-{3:032x}") and not second.endswith("-01")


async def test_one_bad_block_fails_alone(answering):
    servicer, ranker = answering
    scores_by_key(servicer, KEYS[:1])
    servicer.refuses = b"bad"
    asked = [ranker.score(7, KEYS[:1], block, FAR) for block in (b"good", b"bad", b"fine")]
    good, bad, fine = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(bad, RankerUnavailable) and "a block is bad" in str(bad)
    assert good.scores_NT.tolist() == fine.scores_NT.tolist() == [[5.0, 15.0]]
    assert len(servicer.requests) == 4


async def test_an_answer_to_many_of_another_shape_is_asked_for_one_by_one(answering):
    servicer, ranker = answering
    scores_by_key(servicer, KEYS[:1])
    found = await asyncio.gather(*(ranker.score(7, KEYS[:1], b"block", FAR) for _ in range(3)))
    assert [scored.scores_NT.tolist() for scored in found] == [[[5.0, 15.0]]] * 3 and len(servicer.requests) == 4


async def test_a_triton_that_cannot_answer_is_asked_once_for_all(answering):
    servicer, ranker = answering
    servicer.error = "ranker has no base yet"
    found = await asyncio.gather(*(ranker.score(7, KEYS, b"block", FAR) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, RankerUnavailable) for one in found) and len(servicer.requests) == 1


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"SCORES": ("FP32", SCORES)},
        {"SCORES": ("FP32", SCORES[:2]), "VERSION": ("INT64", np.array([3, 41, 42]))},
        {"SCORES": ("FP32", SCORES[:, :1].copy()), "VERSION": ("INT64", np.array([3, 41, 42]))},
        {"SCORES": ("FP32", SCORES), "VERSION": ("INT64", np.array([3, 41]))},
    ],
)
async def test_an_answer_of_another_shape_is_refused(answering, tensors):
    servicer, ranker = answering
    servicer.tensors = tensors
    with pytest.raises(RankerUnavailable, match="another shape"):
        await ranker.score(7, KEYS, b"b", FAR)


async def test_an_error_of_triton_is_said_and_the_next_request_asks_again(answering):
    servicer, ranker = answering
    servicer.error = "ranker has no base yet"
    with pytest.raises(RankerUnavailable, match=r"UNAVAILABLE.*ranker has no base yet"):
        await ranker.score(7, KEYS, b"b", FAR)
    servicer.error = ""
    assert (await ranker.score(7, KEYS, b"b", FAR)).epoch == 3


async def test_without_time_before_the_deadline_triton_is_not_asked(answering):
    servicer, ranker = answering
    with pytest.raises(RankerUnavailable, match="no time is left"):
        await ranker.score(7, KEYS, b"b", 0.0)
    assert not servicer.requests
