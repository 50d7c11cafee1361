"""What the tuner's gRPC clients share: the errors of a call, and calling again what may pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from services.common.platform.errors import Overloaded, ServiceError, Unavailable
from services.common.platform.grpc_client import service_error

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def translated(error: grpc.aio.AioRpcError, what: str) -> ServiceError:
    """Return the error of a call as one of ours; a status that only a defect explains is Unavailable with its name."""
    return service_error(error.code(), f"{what}: {error.code().name}: {error.details() or 'no detail'}")


class Retries:
    """Calls again what may pass: Unavailable and Overloaded, with doubling pauses."""

    def __init__(self, *, attempts: int, first_pause_s: float) -> None:
        """Make up to `attempts` calls."""
        self._attempts, self._first_pause_s = attempts, first_pause_s

    async def call(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Return the first success, or raise the last error."""
        for number in range(self._attempts):
            try:
                return await attempt()
            except (Unavailable, Overloaded) as error:
                if number + 1 == self._attempts:
                    raise
                pause_s = self._first_pause_s * 2**number
                _log.warning("tried again in %.1f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable: the last attempt returns or raises")
