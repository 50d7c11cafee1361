"""The gRPC server that every process runs: health, reflection, error mapping, tracing, and an orderly end on SIGTERM.

`serve` is the whole life of a service; `GrpcServer` is the part for a process that has a main loop of its own (a stream app, or the
updater: without servicers it answers health only). Knows no service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from opentelemetry.metrics import Histogram
from opentelemetry.trace import SpanKind

from services.common.platform.errors import (
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
    shortened,
)
from services.common.platform.settings import BaseServiceSettings, variable_of
from services.common.platform.telemetry import Telemetry
from services.common.platform.traceparent import traceparent_of

STATUS_OF: dict[type[ServiceError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Clients send keepalive pings, every ten seconds at most in gRPC's own libraries, so that a silent stream outlives load balancers and a
# dead server is noticed. By default gRPC takes one ping in five minutes while nothing is sent, and ends the connection at the third.
KEEPALIVE_OPTIONS = (
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# A call that ends so shortly before its deadline ended because of it: the caller's clock is ahead by the way of the request.
_DEADLINE_SLACK_S = 0.1

_log = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicer:
    """One gRPC service to serve.

    Attributes:
        descriptor: e.g. `router_service_pb2.DESCRIPTOR.services_by_name["RouterService"]`; gives the full name for health and reflection.
        implementation: the object with one method per RPC.
        register: the generated `add_…Servicer_to_server`.
        merged: names of methods whose calls carry several callers' requests: their parts have spans and durations of their own
            (`services.common.platform.grpc_parts`), so the call has none.
    """

    descriptor: ServiceDescriptor
    implementation: Any
    register: Callable[[Any, grpc.aio.Server], None]
    merged: Sequence[str] = ()

    @property
    def merged_methods(self) -> list[str]:
        """The paths of the merged methods, as gRPC names them."""
        return [f"/{self.descriptor.full_name}/{name}" for name in self.merged]


def status_of(error: ServiceError) -> grpc.StatusCode:
    """Return the status for an error of a core; subclasses map like their root."""
    return next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), grpc.StatusCode.UNKNOWN)


def told(telemetry: Telemetry, method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return what a caller is told about an error: a core's own by its status and message; anything else goes to the log alone."""
    if isinstance(error, ServiceError):
        return status_of(error), shortened(telemetry.redact(str(error)))
    _log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error in {telemetry.service_name}; its log has the traceback"


def retry_info(code: grpc.StatusCode, details: str, retry_after_s: float | None) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that tells a caller when to come again: google.rpc.RetryInfo as gRPC carries it; none if unknown."""
    if retry_after_s is None:
        return ()
    status = status_pb2.Status(code=code.value[0], message=details)
    delay = Duration()
    delay.FromMicroseconds(round(retry_after_s * 1e6))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return (("grpc-status-details-bin", status.SerializeToString()),)


def server_duration(telemetry: Telemetry) -> Histogram:
    """Return the histogram of the times that calls of a process took, by method and status."""
    return telemetry.histogram("rpc.server.duration", unit="ms", description="Time spent in a handler.")


def span_name_of(telemetry: Telemetry, method: str) -> str:
    """Return the name of a call's span: the process and the method's last part."""
    return f"{telemetry.service_name}.{method.rsplit('/', 1)[-1]}"


class EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Around each RPC: a SERVER span that continues the caller's trace, a duration, and errors mapped to status codes.

    A ServiceError ends the call with its status and message. Anything else is INTERNAL: the traceback goes to the log, not to the caller.
    A call that its caller gives up counts as CANCELLED, one whose deadline passes as DEADLINE_EXCEEDED. Health and reflection pass through.
    """

    def __init__(self, telemetry: Telemetry, merged: Collection[str] = ()) -> None:
        """`telemetry` records the spans and the histogram `rpc.server.duration` (ms), but not of `merged` methods: see `Servicer`."""
        self._telemetry = telemetry
        self._duration = server_duration(telemetry)
        self._merged = frozenset(merged)
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the method's handler, wrapped once per method and kept; None (unknown method) is UNIMPLEMENTED."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith("/grpc."):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        codec: dict[str, Any] = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
        span_name = span_name_of(self._telemetry, method)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(span_name, method, handler.unary_unary), **codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(span_name, method, handler.stream_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(span_name, method, handler.unary_stream), **codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(span_name, method, handler.stream_stream), **codec)

    def _unary(self, span_name: str, method: str, inner: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            async with self._call(span_name, method, context):
                return await inner(request, context)

        return handle

    def _stream(self, span_name: str, method: str, inner: Any) -> Any:
        # Writes by itself: were this a generator, a call cancelled during a write would be cleaned up whenever it is collected.
        async def handle(request: Any, context: Any) -> None:
            async with self._call(span_name, method, context), contextlib.aclosing(inner(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        return handle

    @contextlib.asynccontextmanager
    async def _call(self, span_name: str, method: str, context: Any) -> AsyncGenerator[None]:
        """Around one call: its span, its errors as statuses, its duration with the status that the caller got or would have got."""
        started, budget_s = time.perf_counter(), context.time_remaining()
        ended: grpc.StatusCode | None = None
        try:
            if method in self._merged:
                yield
            else:
                with self._telemetry.span(span_name, parent=traceparent_of(context.invocation_metadata()), kind=SpanKind.SERVER):
                    yield
        except asyncio.CancelledError:
            ended = _reason_of_end(budget_s, context.time_remaining())
            raise
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            await self._abort(method, context, error)
        finally:
            self._record(method, started, context.code() if ended is None else ended)

    def _record(self, method: str, started: float, code: Any) -> None:
        """`code` is a StatusCode, or its number, or None for OK: gRPC's own context has all three."""
        if method in self._merged:
            return
        number = int(getattr(code or 0, "value", (code or 0,))[0])
        self._duration.record((time.perf_counter() - started) * 1e3, {"rpc.method": method, "rpc.grpc.status_code": number})

    async def _abort(self, method: str, context: Any, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        code, details = told(self._telemetry, method, error)
        await context.abort(code, details, retry_info(code, details, getattr(error, "retry_after_s", None)))


def _reason_of_end(budget_s: float | None, left_s: float | None) -> grpc.StatusCode:
    """Return why gRPC cancelled a call that had `budget_s` seconds at its start and has `left_s` now (None: no deadline)."""
    if budget_s is None or left_s is None:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.DEADLINE_EXCEEDED if left_s <= min(0.1 * budget_s, _DEADLINE_SLACK_S) else grpc.StatusCode.CANCELLED


class GrpcServer:
    """A grpc.aio server with health and reflection, bound to the running event loop.

    With no servicers it serves health only, under the name `tunemesh.<service>` and "".
    """

    def __init__(self, settings: BaseServiceSettings, telemetry: Telemetry, servicers: Sequence[Servicer] = ()) -> None:
        """Nothing is bound before `start`. Health begins as NOT_SERVING."""
        self._settings = settings
        self._telemetry = telemetry
        self._servicers = servicers
        self._health = health_aio.HealthServicer()
        self._names = [servicer.descriptor.full_name for servicer in servicers] or [f"tunemesh.{telemetry.service_name}"]
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.port = 0

    async def start(self, *, serving: bool = True) -> int:
        """Bind, start and return the port.

        Args:
            serving: what health says from now on; False for a process that is not ready yet (`set_serving` changes it).
        Raises:
            ConfigurationError: the port is taken, or the host is not an address of this machine.
        """
        self._loop = asyncio.get_running_loop()
        limit = self._settings.max_message_bytes
        # With so_reuseport a second process would bind the same port and take half of the calls.
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            *KEEPALIVE_OPTIONS,
        ]
        merged = [method for servicer in self._servicers for method in servicer.merged_methods]
        server = grpc.aio.server(interceptors=[EdgeInterceptor(self._telemetry, merged)], options=options)
        for servicer in self._servicers:
            servicer.register(servicer.implementation, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [servicer.descriptor.full_name for servicer in self._servicers]
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
        self.port = self._bind(server)
        await self._set_health(serving)
        await server.start()
        self._server = server
        return self.port

    def _bind(self, server: grpc.aio.Server) -> int:
        host, port = self._settings.host, self._settings.port
        try:
            return int(server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        except RuntimeError as error:
            variable, host_variable = variable_of(self._settings, "port"), variable_of(self._settings, "host")
            raise ConfigurationError(
                f"{self._telemetry.service_name} cannot listen on {host}:{port}: the port is already taken, or the host is not an address "
                f"of this machine; stop what listens there, or set {variable} to a free port (or {host_variable})"
            ) from error

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ["", *self._names]:
            await self._health.set(name, status)

    async def set_serving(self, serving: bool) -> None:
        """Change what health says. Call on the server's event loop; other threads use `set_serving_threadsafe`."""
        await self._set_health(serving)

    def set_serving_threadsafe(self, serving: bool) -> None:
        """As `set_serving`, from any thread, without waiting."""
        if self._loop is None:
            raise RuntimeError("the server has not been started")
        asyncio.run_coroutine_threadsafe(self._set_health(serving), self._loop)

    async def drain(self) -> None:
        """Say NOT_SERVING, refuse new calls, let running ones end within the grace, then close. Safe to call twice."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(self._settings.drain_grace_ms / 1e3)
            self._server = None


def log_ready(service_name: str, host: str, port: int) -> None:
    """Log the line that says that the process works; the runner and the tests look for it."""
    _log.info("READY %s %s:%d", service_name, host, port)


async def serve(
    servicers: Sequence[Servicer],
    settings: BaseServiceSettings,
    telemetry: Telemetry,
    *,
    on_drain: Hook | None = None,
    main: Callable[[GrpcServer], Awaitable[None]] | None = None,
    serving: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, or until `main` returns or fails; then drain, run `on_drain`, and shut telemetry down.

    Args:
        servicers: may be empty: health only.
        settings: host, port, grace, limits.
        telemetry: of this process; shut down at the end.
        on_drain: called after the last RPC ended: flush producers and close clients there.
        main: work beside the server, e.g. `lambda server: asyncio.to_thread(worker.run, server)`. It is cancelled before the drain; a
            thread must be told to stop by other means (in `on_drain`). Its exception is raised here after the drain.
        serving: what health says at the start.
    Raises:
        ConfigurationError: the port cannot be bound.
    """
    server = GrpcServer(settings, telemetry, servicers)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        port = await server.start(serving=serving)
        log_ready(telemetry.service_name, settings.host, port)
        try:
            await _until_stopped(stop, main, server)
        finally:
            _log.info("draining: running calls get at most %d ms", settings.drain_grace_ms)
            await server.drain()
    finally:
        try:
            if on_drain is not None:
                await on_drain()
        finally:
            await asyncio.to_thread(telemetry.shutdown)
    _log.info("stopped")


async def _until_stopped(stop: asyncio.Event, main: Callable[[GrpcServer], Awaitable[None]] | None, server: GrpcServer) -> None:
    stopped = asyncio.ensure_future(stop.wait())
    work = asyncio.ensure_future(main(server)) if main is not None else None
    tasks: set[asyncio.Future[Any]] = {stopped} if work is None else {stopped, work}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work is None:
        return
    work.cancel()
    try:
        await work
    except asyncio.CancelledError:
        _log.info("the main loop was cancelled")
