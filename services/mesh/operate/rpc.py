"""Calls of the operator's commands: one channel per part, a deadline on every call, and failures as one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from services.common.platform.errors import ServiceError
from services.common.platform.grpc_client import open_blocking_channel, service_error

ResponseT = TypeVar("ResponseT")


class Client:
    """A part of the mesh that can be called.

    Attributes:
        name: for messages, e.g. "trainer at 127.0.0.1:50054".
    """

    def __init__(self, part: str, target: str, channel: grpc.Channel, hint: str = "") -> None:
        """Use `connect` instead."""
        self.name = f"{part} at {target}"
        self.channel = channel
        self._hint = hint

    def call(self, method: Callable[..., ResponseT], request: Any, *, timeout_ms: int) -> ResponseT:
        """Call a method of a stub made with `channel`.

        Raises:
            InvalidInput, NotFound, Conflict, Overloaded: as the part answered, in its words.
            Unavailable: no answer, or any other failure.
        """
        try:
            return method(request, timeout=timeout_ms / 1e3)
        except grpc.RpcError as error:
            raise self.translated(error) from error

    def translated(self, error: grpc.RpcError) -> ServiceError:
        """Return the error of a call as one line that names the part."""
        code, details = error.code(), " ".join((error.details() or "").split())
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
            details = f"nobody answers there{f' ({self._hint})' if self._hint else ''}"
        return service_error(code, f"the {self.name} said {code.name}: {details}")


@contextmanager
def connect(part: str, target: str, hint: str = "") -> Iterator[Client]:
    """Open a channel for the length of the block; nothing is sent before the first call. `hint`: what to do when nobody answers."""
    with open_blocking_channel(target) as channel:
        yield Client(part, target, channel, hint)
