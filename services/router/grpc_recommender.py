"""The router's gRPC client of the recommender. Requests that wait at the same moment go as one call (services.common.platform.merging)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from tunemesh.recommender.v1 import recommender_service_pb2, recommender_service_pb2_grpc
from typing_extensions import override

from services.common.events.wire.attributes import write_attributes
from services.common.platform.errors import InvalidInput, Overloaded
from services.common.platform.grpc_client import open_channel
from services.common.platform.merging import Merger
from services.common.platform.traceparent import current_traceparent, metadata_of, outgoing_metadata
from services.router.core import Query, Ranking, Recommender, RecommenderTooSlow, RecommenderUnavailable

_MAX_MERGED = 16
# Of all requests of a call together: the answer stays far below the largest message, ids and reasons being as long as they may.
_MAX_MERGED_ITEMS = 2_000
# A recommender of before is asked alone, and after so long whether it is a new one.
_ASK_ALONE_S = 60.0

# What a merged call's failure may owe to one of its requests, or to their being together. A recommender that is not there, or is too slow,
# is so for each.
_OF_ALL = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_CODES = {int(code.value[0]): code for code in grpc.StatusCode}


class RecommenderFailed(Exception):
    """The recommender answered with a status that only a defect explains; the caller gets INTERNAL."""


class _PartFailed(Exception):
    """One request of a merged call failed by itself."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it is merged: its message, the span that it belongs to, and when its caller stops waiting."""

    request: recommender_service_pb2.RecommendRequest
    traceparent: str
    deadline_s: float


_Answer = recommender_service_pb2.RecommendResponse


class GrpcRecommender(Recommender):
    """Calls RecommenderService.Recommend, or RecommendMany for several callers at once."""

    def __init__(self, target: str, *, max_message_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Connects lazily. Must be made on the event loop that uses it."""
        self._target, self._clock = target, clock
        self._channel = open_channel(target, max_message_bytes=max_message_bytes)
        self._stub = recommender_service_pb2_grpc.RecommenderServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._merger: Merger[_Asked, _Answer] = Merger(self._send, max_batch=_MAX_MERGED, max_size=_MAX_MERGED_ITEMS)
        self._alone_until_s = -math.inf

    @override
    async def recommend(self, query: Query, *, timeout_s: float, wait_for_ready: bool) -> Ranking:
        """Ask the recommender; the items of the answer are its own, packed or as messages, and passed on as they are."""
        request = recommender_service_pb2.RecommendRequest(
            user_id=query.user_id, candidates=query.candidates, limit=query.limit, packed=True
        )
        write_attributes(query.context, request.context)
        write_attributes(query.profile, request.profile)
        try:
            if wait_for_ready:
                response = await self._stub.Recommend(request, timeout=timeout_s, wait_for_ready=True, metadata=outgoing_metadata())
            else:
                asked = _Asked(request, current_traceparent(), self._clock() + timeout_s)
                response = await self._merger.ask(asked, size=query.limit + len(query.candidates), timeout_s=timeout_s)
        except TimeoutError as error:
            raise self._translated(grpc.StatusCode.DEADLINE_EXCEEDED, "", timeout_s) from error
        except _PartFailed as error:
            raise self._translated(error.code, error.detail, timeout_s) from error
        except grpc.aio.AioRpcError as error:
            raise self._translated(error.code(), error.details() or "", timeout_s) from error
        return Ranking(
            items=response.items,
            task_names=response.task_names,
            model_version=response.model_version,
            degraded_reason=response.degraded_reason,
            features_block=response.features_block,
            schema_hash=response.schema_hash,
            logged=response.logged if response.HasField("logged") else None,
            packed=response.packed if response.HasField("packed") else None,
        )

    async def _send(self, batch: Sequence[_Asked], timeout_s: float) -> Sequence[_Answer | Exception]:
        if len(batch) == 1 or self._clock() < self._alone_until_s:
            return await self._alone(batch)
        now_s = self._clock()
        message = recommender_service_pb2.RecommendManyRequest()
        for asked in batch:
            # gRPC sends deadlines by the millisecond too; what has less left than one waits for no answer.
            left_ms = max(math.ceil((asked.deadline_s - now_s) * 1e3), 1)
            message.requests.add(request=asked.request, timeout_ms=left_ms, traceparent=asked.traceparent)
        try:
            response = await self._stub.RecommendMany(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _OF_ALL:
                raise
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._alone_until_s = self._clock() + _ASK_ALONE_S
            return await self._alone(batch)
        return [_answer_of(answer) for answer in response.answers]

    async def _alone(self, batch: Sequence[_Asked]) -> Sequence[_Answer | Exception]:
        """Ask for each by a call of its own."""
        now_s = self._clock()

        async def one(asked: _Asked) -> _Answer | Exception:
            try:
                answer: _Answer = await self._stub.Recommend(
                    asked.request, timeout=asked.deadline_s - now_s, wait_for_ready=False, metadata=metadata_of(asked.traceparent)
                )
                return answer
            except grpc.aio.AioRpcError as error:
                return error

        return [await one(batch[0])] if len(batch) == 1 else await asyncio.gather(*map(one, batch))

    def _translated(self, code: grpc.StatusCode, detail: str, timeout_s: float) -> Exception:
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return RecommenderUnavailable(
                f"the recommender at {self._target} is unavailable ({detail}); retry with the same idempotency_key"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"the recommender at {self._target} did not answer in {timeout_s * 1e3:.0f} ms; retry with the same idempotency_key"
            return RecommenderTooSlow(message)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInput(detail)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(detail)
        return RecommenderFailed(f"the recommender at {self._target} answered {code.name}: {detail}")

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _answer_of(answer: recommender_service_pb2.MergedAnswer) -> _Answer | Exception:
    if answer.code:
        return _PartFailed(_CODES.get(answer.code, grpc.StatusCode.UNKNOWN), answer.message)
    return _Answer.FromString(answer.response)
