"""The parts of a call that carries several callers' requests: each is answered as a call of its own would be. Knows no service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from opentelemetry.trace import SpanKind

from services.common.platform.grpc_server import server_duration, span_name_of, told
from services.common.platform.telemetry import Telemetry

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a part has no answer: what its caller would have got as the status of a call of its own."""

    code: grpc.StatusCode
    message: str

    @property
    def number(self) -> int:
        """The code as gRPC sends it."""
        return int(self.code.value[0])


class Parts:
    """Answers parts of merged calls in the name of the method that each would have called by itself."""

    def __init__(self, telemetry: Telemetry, method: str) -> None:
        """`method` is the path of the unary method, e.g. "/tunemesh.recommender.v1.RecommenderService/Recommend"."""
        self._telemetry, self._method = telemetry, method
        self._span_name, self._duration = span_name_of(telemetry, method), server_duration(telemetry)

    async def answer(self, traceparent: str, work: Callable[[], Awaitable[AnswerT]]) -> AnswerT | Failure:
        """Return what `work` does, or its failure; in a SERVER span that continues the caller's trace, and with a duration."""
        started, ended = time.perf_counter(), grpc.StatusCode.OK
        try:
            with self._telemetry.span(self._span_name, parent=traceparent, kind=SpanKind.SERVER):
                return await work()
        except asyncio.CancelledError:
            ended = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            failure = Failure(*told(self._telemetry, self._method, error))
            ended = failure.code
            return failure
        finally:
            attributes: dict[str, str | int] = {"rpc.method": self._method, "rpc.grpc.status_code": int(ended.value[0])}
            self._duration.record((time.perf_counter() - started) * 1e3, attributes)
