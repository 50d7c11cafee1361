"""The client of Triton against a gRPC server that answers as a ranker does, well and badly."""

from __future__ import annotations

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
    requests: list[Any] = field(default_factory=list)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.error)
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
