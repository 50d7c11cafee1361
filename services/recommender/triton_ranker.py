"""Asks Triton for scores. Knows the ranker model's tensors (model_repo/ranker/config.pbtxt), not what is in them.

Speaks the Open Inference Protocol by tritonclient's generated messages, not by its client: a request is put together once, without an
object and a copy per tensor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typing_extensions import override

from services.common.platform.grpc_client import open_channel
from services.common.platform.traceparent import current_traceparent
from services.recommender.core import Ranker, RankerUnavailable, Scores

MODEL = "ranker"

# What it takes to send a degraded answer once the ranker was given up.
_RESERVE_S = 0.01

_OUTPUTS = tuple(service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("SCORES", "VERSION"))

_log = logging.getLogger(__name__)


class TritonRanker(Ranker):
    """Meets `core.Ranker`."""

    def __init__(self, url: str, *, num_tasks: int, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Open a channel to `url` (host:port); it connects with the first call, and again after a failure.

        Args:
            url: Triton's gRPC endpoint.
            num_tasks: columns that the answer must have.
            timeout_s: longest wait for one answer.
            clock: monotonic seconds; what deadlines count in.
        """
        self._channel = open_channel(url)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._num_tasks, self._timeout_s, self._clock = num_tasks, timeout_s, clock
        self._is_down = False

    @override
    async def score(self, user_key: int, item_keys_N: npt.NDArray[np.int64], features_block: bytes, deadline_s: float) -> Scores:
        timeout_s = min(self._timeout_s, deadline_s - self._clock() - _RESERVE_S)
        if timeout_s <= 0:
            raise RankerUnavailable("ranker: no time is left before the deadline")
        try:
            response = await self._infer(_request(user_key, item_keys_N, features_block), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failed(f"[{error.code()}] {error.details()}") from error
        scores = self._scores(response, len(item_keys_N))
        if scores is None:
            raise self._failed("its answer has another shape than model_repo/ranker/config.pbtxt says")
        if self._is_down:
            self._is_down = False
            _log.info("the ranker is back")
        return scores

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def _scores(self, response: Any, num_items: int) -> Scores | None:
        """Return the scores; None for an answer that does not hold `num_items` rows of them, or no version."""
        raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
        scores, version = raw.get("SCORES", b""), raw.get("VERSION", b"")
        if len(scores) != 4 * num_items * self._num_tasks or len(version) != 8 * 3:
            return None
        epoch, seq_min, seq_max = np.frombuffer(version, dtype="<i8").tolist()
        return Scores(np.frombuffer(scores, dtype="<f4").reshape(num_items, self._num_tasks), epoch, seq_min, seq_max)

    def _failed(self, reason: str) -> RankerUnavailable:
        if not self._is_down:
            self._is_down = True
            _log.warning("the ranker does not answer, answers say ranker_unavailable: %s", reason)
        return RankerUnavailable(f"ranker: {reason}")


def _request(user_key: int, item_keys_N: npt.NDArray[np.int64], features_block: bytes) -> Any:
    request = service_pb2.ModelInferRequest(model_name=MODEL, outputs=_OUTPUTS)
    request.inputs.add(name="USER_ID", datatype="INT64", shape=(1,))
    request.inputs.add(name="ITEM_IDS", datatype="INT64", shape=(len(item_keys_N),))
    request.inputs.add(name="FEATURES", datatype="UINT8", shape=(len(features_block),))
    user = user_key.to_bytes(8, "little", signed=True)
    request.raw_input_contents.extend((user, np.asarray(item_keys_N, dtype="<i8").tobytes(), features_block))
    traceparent = current_traceparent()
    if traceparent:
        request.parameters["traceparent"].string_param = traceparent
    return request
