"""The parts of the bench of peers that decide: the closed loop over HTTP, and when two answers are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

import pytest
from aiohttp import web

from loadtests.bench.peers import differences
from loadtests.bench_peers import http_loop

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def asked(handler: Handler, num: int, at_once: int, failed: list[str] | None = None) -> tuple[list[bytes], list[float]]:
    """Ask a server so often; return the bodies and how long each took. failed: see `http_loop.run`."""
    bodies: list[bytes] = []
    took_s: list[float] = []

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/x", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = [address[:2] for address in runner.addresses]
        messages = (http_loop.request("/x", host, str(number).encode()) for number in range(num))
        try:
            await http_loop.run(host, port, messages, at_once=at_once, check=bodies.append, took_s=took_s, failed=failed)
        finally:
            await runner.cleanup()

    asyncio.run(run())
    return bodies, took_s


async def doubled(request: web.Request) -> web.Response:
    return web.Response(body=await request.read() * 2)


async def in_chunks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for part in (b"a" * 70_000, b"b", await request.read()):
        await response.write(part)
    await response.write_eof()
    return response


@pytest.mark.parametrize("at_once", [1, 7])
def test_each_request_is_asked_once_and_timed(at_once: int) -> None:
    bodies, took_s = asked(doubled, 50, at_once)
    assert sorted(bodies) == sorted(str(number).encode() * 2 for number in range(50))
    assert len(took_s) == 50 and min(took_s) > 0


def test_answers_in_chunks_are_read_whole() -> None:
    bodies, _ = asked(in_chunks, 5, 2)
    assert sorted(bodies) == [b"a" * 70_000 + b"b" + str(number).encode() for number in range(5)]


def test_so_many_are_under_way_and_no_more() -> None:
    under_way, most = 0, 0

    async def slow(_: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return web.Response(body=b"")

    asked(slow, 40, 8)
    assert most == 8


def test_a_refusal_ends_the_run_with_what_it_says() -> None:
    numbers = count()

    async def third_fails(_: web.Request) -> web.Response:
        return web.Response(status=503 if next(numbers) == 2 else 200, text="overloaded")

    with pytest.raises(http_loop.CallFailed, match=r"503 .*: overloaded"):
        asked(third_fails, 10, 1)


def test_failures_may_be_counted_and_the_others_go_on() -> None:
    numbers = count()

    async def some_fail(request: web.Request) -> web.Response:
        number = next(numbers)
        assert request.transport is not None
        if number % 10 == 3:
            request.transport.close()
        return web.Response(status=503 if number % 10 == 7 else 200, text="some text")

    failed: list[str] = []
    bodies, _ = asked(some_fail, 40, 4, failed)
    assert len(bodies) == 32 and len(failed) == 8
    assert sum("the connection ended" in one for one in failed) == 4 and sum("503" in one for one in failed) == 4


def test_a_connection_that_ends_is_a_failure() -> None:
    async def ends(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    with pytest.raises(http_loop.CallFailed, match="the connection ended"):
        asked(ends, 3, 1)


def test_answers_are_the_same_to_float32s_precision_whatever_the_order_of_ties() -> None:
    ours = [("a", 0.5), ("b", 0.25), ("c", 0.25)]
    assert differences(ours, [("a", 0.500001), ("c", 0.25), ("b", 0.25)]) == ""
    assert differences(ours, ours[:2]) == "3 items and 2"
    assert differences(ours, [("a", 0.5), ("b", 0.25), ("d", 0.25)]) == "other items"
    assert differences(ours, [("a", 0.5), ("b", 0.25), ("c", 0.2501)]).startswith("scores that are 0.0001")
