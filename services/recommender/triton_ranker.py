"""Asks Triton for scores. Knows the ranker model's tensors (model_repo/ranker/config.pbtxt), not what is in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import grpc
import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException
from typing_extensions import override

from services.common.platform.grpc_client import RECONNECT_OPTIONS
from services.common.platform.traceparent import current_traceparent
from services.recommender.core import Ranker, RankerUnavailable, Scores

MODEL = "ranker"

# What it takes to send a degraded answer once the ranker was given up.
_RESERVE_S = 0.01

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
        self._client = InferenceServerClient(url, channel_args=list(RECONNECT_OPTIONS))
        self._num_tasks, self._timeout_s, self._clock = num_tasks, timeout_s, clock
        self._is_down = False

    @override
    async def score(self, user_key: int, item_keys: Sequence[int], features_block: bytes, deadline_s: float) -> Scores:
        timeout_s = min(self._timeout_s, deadline_s - self._clock() - _RESERVE_S)
        if timeout_s <= 0:
            raise RankerUnavailable("ranker: no time is left before the deadline")
        inputs = [
            _tensor("USER_ID", "INT64", np.array([user_key], dtype=np.int64)),
            _tensor("ITEM_IDS", "INT64", np.array(item_keys, dtype=np.int64)),
            _tensor("FEATURES", "UINT8", np.frombuffer(features_block, dtype=np.uint8)),
        ]
        traceparent = current_traceparent()
        parameters = {"traceparent": traceparent} if traceparent else None
        try:
            result = await self._client.infer(MODEL, inputs, client_timeout=timeout_s, parameters=parameters)
        except (InferenceServerException, grpc.RpcError) as error:
            raise self._failed(f"{error}") from error
        scores_NT, version = result.as_numpy("SCORES"), result.as_numpy("VERSION")
        if scores_NT is None or version is None or scores_NT.shape != (len(item_keys), self._num_tasks) or version.shape != (3,):
            raise self._failed("its answer has another shape than model_repo/ranker/config.pbtxt says")
        if self._is_down:
            self._is_down = False
            _log.info("the ranker is back")
        epoch, seq_min, seq_max = version.tolist()
        return Scores(scores_NT, epoch, seq_min, seq_max)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    def _failed(self, reason: str) -> RankerUnavailable:
        if not self._is_down:
            self._is_down = True
            _log.warning("the ranker does not answer, answers say ranker_unavailable: %s", reason)
        return RankerUnavailable(f"ranker: {reason}")


def _tensor(name: str, datatype: str, values: np.ndarray) -> InferInput:
    tensor = InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor
