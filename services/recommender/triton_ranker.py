"""Asks Triton for scores. Knows the ranker model's tensors (model_repo/ranker/config.pbtxt), not what is in them.

Speaks the Open Inference Protocol by tritonclient's generated messages, not by its client: a request is put together once, without an
object and a copy per tensor. Requests that wait at the same moment go as one call (services.common.platform.merging).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typing_extensions import override

from services.common.platform.grpc_client import open_channel
from services.common.platform.merging import Merger
from services.common.platform.traceparent import current_traceparent
from services.recommender.core import Ranker, RankerUnavailable, Scores

MODEL = "ranker"

# What it takes to send a degraded answer once the ranker was given up.
_RESERVE_S = 0.01

_MAX_MERGED = 16
# Of their exposure blocks together; a block of 100 items has 4 KB.
_MAX_MERGED_BYTES = 256 * 1024

# A merged call that fails otherwise may owe it to one of its requests: each is then asked for alone.
_OF_ALL = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

_OUTPUTS = tuple(service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("SCORES", "VERSION"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is scored for one user, and the span that it belongs to."""

    user_key: int
    item_keys_N: npt.NDArray[np.int64]
    features_block: bytes
    traceparent: str
    deadline_s: float


class _WrongShape(Exception):
    """Triton's answer does not hold what was asked for."""

    def __init__(self) -> None:
        super().__init__("its answer has another shape than model_repo/ranker/config.pbtxt says")


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
        self._merger: Merger[_Asked, Scores] = Merger(self._send, max_batch=_MAX_MERGED, max_size=_MAX_MERGED_BYTES)
        self._is_down = False

    @override
    async def score(self, user_key: int, item_keys_N: npt.NDArray[np.int64], features_block: bytes, deadline_s: float) -> Scores:
        now_s = self._clock()
        timeout_s = min(self._timeout_s, deadline_s - now_s - _RESERVE_S)
        if timeout_s <= 0:
            raise RankerUnavailable("ranker: no time is left before the deadline")
        asked = _Asked(user_key, item_keys_N, features_block, current_traceparent(), now_s + timeout_s)
        try:
            scores = await self._merger.ask(asked, size=len(features_block), timeout_s=timeout_s)
        except TimeoutError as error:
            raise self._failed(f"no answer in {timeout_s * 1e3:.0f} ms") from error
        except grpc.aio.AioRpcError as error:
            raise self._failed(f"[{error.code()}] {error.details()}") from error
        except _WrongShape as error:
            raise self._failed(str(error)) from error
        if self._is_down:
            self._is_down = False
            _log.info("the ranker is back")
        return scores

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _send(self, batch: Sequence[_Asked], timeout_s: float) -> Sequence[Scores | Exception]:
        try:
            return self._scores(await self._infer(_request(batch), timeout=timeout_s), batch)
        except (grpc.aio.AioRpcError, _WrongShape) as error:
            if len(batch) == 1 or (isinstance(error, grpc.aio.AioRpcError) and error.code() in _OF_ALL):
                raise
        return await asyncio.gather(*map(self._alone, batch))

    async def _alone(self, asked: _Asked) -> Scores | Exception:
        try:
            response = await self._infer(_request([asked]), timeout=asked.deadline_s - self._clock())
            return self._scores(response, [asked])[0]
        except (grpc.aio.AioRpcError, _WrongShape) as error:
            return error

    def _scores(self, response: Any, batch: Sequence[_Asked]) -> list[Scores]:
        """Return the scores of each. Raises _WrongShape for an answer that does not hold a row for each item, or no version."""
        raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
        scores, version = raw.get("SCORES", b""), raw.get("VERSION", b"")
        sizes = [len(asked.item_keys_N) for asked in batch]
        if len(scores) != 4 * sum(sizes) * self._num_tasks or len(version) != 8 * 3:
            raise _WrongShape
        epoch, seq_min, seq_max = np.frombuffer(version, dtype="<i8").tolist()
        scores_BT = np.frombuffer(scores, dtype="<f4").reshape(sum(sizes), self._num_tasks)
        found, start = [], 0
        for size in sizes:
            found.append(Scores(scores_BT[start : start + size], epoch, seq_min, seq_max))
            start += size
        return found

    def _failed(self, reason: str) -> RankerUnavailable:
        if not self._is_down:
            self._is_down = True
            _log.warning("the ranker does not answer, answers say ranker_unavailable: %s", reason)
        return RankerUnavailable(f"ranker: {reason}")


def _request(batch: Sequence[_Asked]) -> Any:
    """Return the message: users, their items and their blocks, one behind the other."""
    items = b"".join(np.asarray(asked.item_keys_N, dtype="<i8").tobytes() for asked in batch)
    blocks = batch[0].features_block if len(batch) == 1 else b"".join(asked.features_block for asked in batch)
    users = b"".join(asked.user_key.to_bytes(8, "little", signed=True) for asked in batch)
    request = service_pb2.ModelInferRequest(model_name=MODEL, outputs=_OUTPUTS)
    request.inputs.add(name="USER_ID", datatype="INT64", shape=(len(batch),))
    request.inputs.add(name="ITEM_IDS", datatype="INT64", shape=(len(items) // 8,))
    request.inputs.add(name="FEATURES", datatype="UINT8", shape=(len(blocks),))
    request.raw_input_contents.extend((users, items, blocks))
    traceparents = ",".join(asked.traceparent for asked in batch)
    if traceparents.strip(","):
        request.parameters["traceparent"].string_param = traceparents
    return request
