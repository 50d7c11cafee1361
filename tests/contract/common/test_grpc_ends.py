"""How calls end by their clocks: deadlines and cancelled calls as they are counted, and the keepalive pings of long silences."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from services.common.platform import grpc_server
from services.common.platform.errors import DeadlineExceeded, Unavailable
from services.common.platform.grpc_server import EdgeInterceptor
from services.common.platform.secrets import Redactor
from services.common.platform.telemetry import Telemetry
from tests.limits import seconds

OK, CANCELLED, DEADLINE_EXCEEDED = (
    code.value[0] for code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
)


class Recorder:
    """Telemetry whose status codes and spans a test reads."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.has_begun = asyncio.Event()
        self.spans = InMemorySpanExporter()
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry("probe", tracer_provider, meter_provider, 1.0, Redactor())

    def codes(self) -> Counter[int]:
        """Number of calls by status code."""
        data = self._reader.get_metrics_data()
        points = [p for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics for p in m.data.data_points] if data else []
        counts: Counter[int] = Counter()
        for point in points:
            counts[int(point.attributes["rpc.grpc.status_code"])] += point.count
        return counts

    async def until(self, expected: dict[int, int]) -> None:
        """Wait until exactly these have been counted."""
        async with asyncio.timeout(seconds(30)):
            while sum((codes := self.codes()).values()) < sum(expected.values()):
                await asyncio.sleep(0.01)
        assert codes == expected


async def silence(_request, _context):
    yield b"first"
    await asyncio.Event().wait()


async def too_late(_request, _context):
    raise DeadlineExceeded("the service's own limit is over")


@asynccontextmanager
async def probe(recorder: Recorder, **options: int) -> AsyncIterator[grpc.aio.Channel]:
    """A channel, with `options`, to a server with the silent methods; `recorder.has_begun` is set when a call of Never has begun."""

    async def never(_request, _context):
        recorder.has_begun.set()
        await asyncio.Event().wait()

    handlers = {
        "Silence": grpc.unary_stream_rpc_method_handler(silence),
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "TooLate": grpc.unary_unary_rpc_method_handler(too_late),
    }
    server = grpc.aio.server(interceptors=[EdgeInterceptor(recorder.telemetry)], options=grpc_server.KEEPALIVE_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Probe", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel_options = [(f"grpc.{name}", value) for name, value in options.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options) as channel:
        yield channel
    await server.stop(None)


async def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_callers_deadline_is_counted_as_one_for_unary_and_streamed_calls() -> None:
    """The shortest deadline that the calls begin within: one that is over before a call reaches its method is nobody's to count."""
    for timeout_s in (0.2, 1.0, 5.0, seconds(30)):
        recorder = Recorder()
        async with probe(recorder) as channel:
            await channel.channel_ready()
            assert await code_of(channel.unary_unary("/t.Probe/Never")(b"", timeout=timeout_s)) is grpc.StatusCode.DEADLINE_EXCEEDED
            call = channel.unary_stream("/t.Probe/Silence")(b"", timeout=timeout_s)
            received = []
            with pytest.raises(grpc.aio.AioRpcError):
                async for message in call:
                    received.append(message)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if recorder.has_begun.is_set() and received == [b"first"]:
                await recorder.until({DEADLINE_EXCEEDED: 2})
                assert {span.status.status_code for span in recorder.spans.get_finished_spans()} == {StatusCode.ERROR}
                return
    pytest.fail("no call began within its deadline")


async def test_a_call_that_its_caller_gives_up_is_counted_as_cancelled() -> None:
    recorder = Recorder()
    async with probe(recorder) as channel:
        for timeout in (None, 600.0):
            call = channel.unary_stream("/t.Probe/Silence")(b"", timeout=timeout)
            assert await call.read() == b"first"
            call.cancel()
        await recorder.until({CANCELLED: 2})


async def test_a_services_own_limit_is_deadline_exceeded_at_the_caller_and_in_the_count() -> None:
    recorder = Recorder()
    async with probe(recorder) as channel:
        assert await code_of(channel.unary_unary("/t.Probe/TooLate")(b"")) is grpc.StatusCode.DEADLINE_EXCEEDED
        await recorder.until({DEADLINE_EXCEEDED: 1})


@pytest.mark.parametrize(
    ("budget_s", "left_s", "expected"),
    [
        (None, None, grpc.StatusCode.CANCELLED),
        (1.0, 0.0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (1.0, -3.0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (60.0, 0.09, grpc.StatusCode.DEADLINE_EXCEEDED),
        (60.0, 0.2, grpc.StatusCode.CANCELLED),
        (0.2, 0.05, grpc.StatusCode.CANCELLED),
    ],
)
def test_only_the_end_of_a_calls_time_is_taken_for_its_deadline(budget_s, left_s, expected) -> None:
    assert grpc_server._reason_of_end(budget_s, left_s) is expected


async def outlives_pings(recorder: Recorder, *, every_ms: int, times: int) -> None:
    """A silent stream must be there after so many keepalive pings of its client."""
    async with probe(recorder, keepalive_time_ms=every_ms, keepalive_timeout_ms=20_000, **{"http2.max_pings_without_data": 0}) as channel:
        call = channel.unary_stream("/t.Probe/Silence")(b"")
        assert await call.read() == b"first"
        await asyncio.sleep(every_ms / 1e3 * times)
        assert not call.done(), await call.details()
        call.cancel()


async def test_a_silent_stream_outlives_the_keepalive_pings_of_its_client(monkeypatch) -> None:
    """Both intervals a tenth of the real ones, five and ten seconds; gRPC's client pings no faster."""
    scaled = tuple((name, value // 10 if name.endswith("_ms") else value) for name, value in grpc_server.KEEPALIVE_OPTIONS)
    monkeypatch.setattr(grpc_server, "KEEPALIVE_OPTIONS", scaled)
    await outlives_pings(Recorder(), every_ms=1_000, times=5)


async def test_an_error_reaches_its_caller_without_the_password_in_its_text() -> None:
    async def leak(_request, _context):
        raise Unavailable("redis://:p1anted@cache:6379/0 refused user 'app' with 'p1anted'")

    telemetry = Telemetry(
        "probe", TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False), 0.0, Redactor(["p1anted"])
    )
    server = grpc.aio.server(interceptors=[EdgeInterceptor(telemetry)])
    handlers = {"Leak": grpc.unary_unary_rpc_method_handler(leak)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Probe", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.Probe/Leak")(b"", timeout=seconds(30))
    await server.stop(None)
    assert caught.value.details() == "redis://***@cache:6379/0 refused user 'app' with '***'"
