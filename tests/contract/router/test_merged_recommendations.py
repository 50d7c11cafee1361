"""The router's client of the recommender over real gRPC: requests that wait at the same moment are one call, and stay each its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from tunemesh.common.v1 import recommendation_pb2
from tunemesh.recommender.v1 import recommender_service_pb2 as pb
from tunemesh.recommender.v1 import recommender_service_pb2_grpc as pb_grpc

from services.common.events.attributes import MAX_BYTES, Attribute, check, size_of
from services.common.platform.errors import InvalidInput, Overloaded
from services.common.platform.telemetry import disabled
from services.router.core import Query, Ranking, RecommenderTooSlow, RecommenderUnavailable
from services.router.grpc_recommender import GrpcRecommender, RecommenderFailed
from tests.limits import seconds

SPANS = [f"00-{number:032x}-{number:016x}-00" for number in range(1, 100)]


def answered(request: pb.RecommendRequest) -> pb.RecommendResponse:
    items = [recommendation_pb2.RankedItem(item_id=f"{request.user_id} {item}", score=0.5) for item in request.candidates]
    return pb.RecommendResponse(items=items, model_version="1.42", logged={"item_ids": [item.item_id for item in items]})


class OldRecommender(pb_grpc.RecommenderServiceServicer):
    """A recommender of before, without RecommendMany."""

    def __init__(self) -> None:
        self.alone: list[pb.RecommendRequest] = []
        self.spans: list[str] = []
        self.merged: list[pb.RecommendManyRequest] = []

    async def Recommend(self, request, context):
        self.alone.append(request)
        self.spans.append(dict(context.invocation_metadata()).get("traceparent", ""))
        if request.user_id == "bad":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "user_id: it is bad")
        return answered(request)


class FakeRecommender(OldRecommender):
    """Fails, or waits, as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[grpc.StatusCode] = []
        self.held = asyncio.Event()
        self.held.set()
        self.ended: list[str] = []

    async def RecommendMany(self, request, context):
        self.merged.append(request)
        try:
            await self.held.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        if self.failures:
            await context.abort(self.failures.pop(0), "because")
        return pb.RecommendManyResponse(answers=[self.part(part.request) for part in request.requests])

    def part(self, request: pb.RecommendRequest) -> pb.MergedAnswer:
        if request.user_id == "bad":
            return pb.MergedAnswer(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="user_id: it is bad")
        if request.user_id == "broken":
            return pb.MergedAnswer(code=grpc.StatusCode.INTERNAL.value[0], message="internal error")
        if request.user_id == "strange":
            return pb.MergedAnswer(code=77, message="never heard of")
        return pb.MergedAnswer(response=answered(request).SerializeToString())


async def served(fake: OldRecommender) -> AsyncIterator[tuple[OldRecommender, GrpcRecommender]]:
    server = grpc.aio.server()
    pb_grpc.add_RecommenderServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = GrpcRecommender(f"127.0.0.1:{port}", max_message_bytes=1 << 22)
    # A connection that takes longer than the channel's patience would count as a recommender that is not there.
    async with asyncio.timeout(seconds(60)):
        await client._channel.channel_ready()
    yield fake, client
    await client.close()
    await server.stop(None)


@pytest.fixture
async def both() -> AsyncIterator[tuple[FakeRecommender, GrpcRecommender]]:
    async for each in served(FakeRecommender()):
        yield each


@pytest.fixture
async def old() -> AsyncIterator[tuple[OldRecommender, GrpcRecommender]]:
    async for each in served(OldRecommender()):
        yield each


def query(user_id: str, num_candidates: int = 2) -> Query:
    return Query(user_id=user_id, candidates=tuple(f"i{number}" for number in range(num_candidates)), limit=num_candidates)


async def ask(client: GrpcRecommender, user_id: str, *, timeout_s: float = 60.0, span: str = "", num_candidates: int = 2) -> Ranking:
    with disabled().span("a", parent=span):
        return await client.recommend(query(user_id, num_candidates), timeout_s=seconds(timeout_s), wait_for_ready=False)


async def all_of(client: GrpcRecommender, *user_ids: str, **options: float) -> list[Ranking | BaseException]:
    """Ask for all in one turn of the loop."""
    asked = [ask(client, user_id, span=span, **options) for user_id, span in zip(user_ids, SPANS, strict=False)]
    return await asyncio.gather(*asked, return_exceptions=True)


def users_of(answers: list[Ranking | BaseException]) -> list[str]:
    return [answer.items[0].item_id.split()[0] if isinstance(answer, Ranking) else type(answer).__name__ for answer in answers]


async def test_requests_of_one_moment_are_one_call_with_each_ones_span_and_time(both):
    fake, client = both
    answers = await all_of(client, "a", "b", "c")
    assert users_of(answers) == ["a", "b", "c"]
    assert [list(answer.logged.item_ids) for answer in answers] == [["a i0", "a i1"], ["b i0", "b i1"], ["c i0", "c i1"]]
    [call] = fake.merged
    assert not fake.alone
    assert [part.traceparent for part in call.requests] == SPANS[:3]
    # Rounded up to the millisecond, and a millionth of one is enough for that.
    assert all(seconds(30) * 1e3 < part.timeout_ms <= seconds(60) * 1e3 + 1 for part in call.requests)


async def test_a_request_that_has_no_company_is_a_call_of_its_own(both):
    fake, client = both
    assert users_of([await ask(client, "a", span=SPANS[0])]) == ["a"]
    assert fake.spans == [SPANS[0]] and not fake.merged


async def test_the_largest_contexts_and_profiles_fit_into_one_call_and_stay_each_its_own(both):
    """Lists of short texts: of what the limits allow, they take the most bytes on the way."""
    fake, client = both
    largest: dict[str, Attribute] = {f"n{number}": ("x",) * 4_000 for number in range(8)}
    queries = [replace(query(f"u{number}"), context={**largest, "number": number}, profile=largest) for number in range(16)]
    for each in queries:
        check("context", each.context, AssertionError)
    assert size_of(largest) > 0.95 * MAX_BYTES
    answers = await asyncio.gather(*(client.recommend(each, timeout_s=seconds(60), wait_for_ready=False) for each in queries))
    assert users_of(list(answers)) == [f"u{number}" for number in range(16)]
    [call] = fake.merged
    assert [part.request.context["number"].integer for part in call.requests] == list(range(16))
    assert all(len(part.request.profile["n7"].texts.values) == 4_000 for part in call.requests)


async def test_one_that_is_refused_or_fails_does_so_alone(both):
    fake, client = both
    answers = await all_of(client, "a", "bad", "b", "broken", "strange")
    assert users_of(answers) == ["a", "InvalidInput", "b", "RecommenderFailed", "RecommenderFailed"]
    assert isinstance(answers[1], InvalidInput) and str(answers[1]) == "user_id: it is bad"
    assert isinstance(answers[3], RecommenderFailed) and "UNKNOWN: never heard of" in str(answers[4])
    assert len(fake.merged) == 1 and not fake.alone


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
async def test_a_call_that_fails_for_what_it_carries_is_made_again_one_by_one(both, status):
    fake, client = both
    fake.failures = [status]
    assert users_of(await all_of(client, "a", "bad", "b")) == ["a", "InvalidInput", "b"]
    assert sorted(fake.spans) == SPANS[:3]
    assert users_of(await all_of(client, "a", "b")) == ["a", "b"] and len(fake.merged) == 2


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_recommender_that_is_not_there_is_so_for_each(both, status):
    fake, client = both
    fake.failures = [status]
    answers = await all_of(client, "a", "b")
    assert all(isinstance(answer, RecommenderUnavailable) for answer in answers) and not fake.alone


async def test_a_recommender_of_before_is_asked_one_by_one_and_then_tried_again(old):
    fake, client = old
    now_s = 0.0
    client._clock = lambda: now_s
    assert users_of(await all_of(client, "a", "bad", "b")) == ["a", "InvalidInput", "b"]
    assert sorted(fake.spans) == SPANS[:3]
    assert client._alone_until_s == 60.0
    assert users_of(await all_of(client, "a", "b")) == ["a", "b"] and client._alone_until_s == 60.0
    now_s = 61.0
    assert users_of(await all_of(client, "a", "b")) == ["a", "b"] and client._alone_until_s == 121.0


async def test_an_answer_that_is_too_large_together_comes_one_by_one(both):
    fake, client = both
    client._merger._max_size = 10**9
    large = await all_of(client, *("u" * 128 for _ in range(8)), num_candidates=4_000)
    assert [len(answer.items) for answer in large] == [4_000] * 8
    assert len(fake.merged) == 1 and len(fake.alone) == 8


async def test_many_items_are_spread_over_calls(both):
    fake, client = both
    assert users_of(await all_of(client, "a", "b", "c", "d", num_candidates=500)) == ["a", "b", "c", "d"]
    assert [len(call.requests) for call in fake.merged] == [2, 2]


async def test_who_gives_up_leaves_the_others(both):
    fake, client = both
    fake.held.clear()
    first, second = (asyncio.create_task(ask(client, user_id)) for user_id in ("a", "b"))
    while not fake.merged:
        await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    fake.held.set()
    assert users_of([await second]) == ["b"] and not fake.ended


async def test_a_call_that_nobody_waits_for_is_ended(both):
    fake, client = both
    fake.held.clear()
    tasks = [asyncio.create_task(ask(client, user_id)) for user_id in ("a", "b")]
    while not fake.merged:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    while not fake.ended:
        await asyncio.sleep(0.01)
    assert fake.ended == ["cancelled"]


async def test_each_waits_as_long_as_its_own_deadline(both):
    fake, client = both
    fake.held.clear()

    async def short() -> Ranking:
        return await client.recommend(query("short"), timeout_s=0.05, wait_for_ready=False)

    patient, hasty = asyncio.create_task(ask(client, "patient")), asyncio.create_task(short())
    with pytest.raises(RecommenderTooSlow, match="did not answer in 50 ms"):
        await hasty
    fake.held.set()
    assert users_of([await patient]) == ["patient"]


async def test_a_shed_request_is_overloaded(both):
    fake, client = both
    fake.part = lambda request: pb.MergedAnswer(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="too much")
    answers = await all_of(client, "a", "b")
    assert all(isinstance(answer, Overloaded) for answer in answers)
