import asyncio
from dataclasses import replace

import pytest

from services.common.platform.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from services.router.admission import Admission, AdmissionLimits
from services.router.core import (
    Limits,
    Query,
    RecentAnswers,
    RecommenderTooSlow,
    RecommenderUnavailable,
    Router,
    checked,
)
from tests.edge_fakes import FakeExposureLog, FakeRecommender, ranking_of

LIMITS = Limits(max_candidates=5, default_limit=2, default_deadline_s=1.0, max_deadline_s=4.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A router with fakes around it; `clock` moves only when a test moves it."""

    def __init__(self, *failures: Exception, ttl_s: float = 60.0, max_entries: int = 10) -> None:
        self.clock = Clock()
        self.recommender = FakeRecommender(failures=list(failures))
        self.exposures = FakeExposureLog()
        self.minted = 0
        self.router = Router(
            self.recommender,
            self.exposures,
            RecentAnswers(ttl_s=ttl_s, max_entries=max_entries),
            Admission(AdmissionLimits(least=2, most=2, latency_share=0.5), self.clock),
            limits=LIMITS,
            variant="default",
            monotonic_s=self.clock,
            wall_ms=lambda: 1_700_000_000_000,
            new_request_id=self.mint,
        )

    def mint(self, unix_ms: int) -> str:
        self.minted += 1
        return f"{unix_ms}-{self.minted}"

    async def ask(self, query: Query, remaining_s: float | None = None):
        return await self.router.recommend(query, remaining_s=remaining_s)


QUERY = Query(user_id="u", candidates=("a", "b", "c"))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (replace(QUERY, user_id=""), "user_id: it is empty"),
        (replace(QUERY, user_id="x" * 129), "user_id: it has 129 bytes"),
        (replace(QUERY, user_id="é" * 65), "user_id: it has 130 bytes"),
        (replace(QUERY, candidates=("a", "")), r"candidates\[1\]: it is empty"),
        (replace(QUERY, candidates=("a", "x" * 129)), r"candidates\[1\]: it has 129 bytes"),
        (replace(QUERY, candidates=("a", "b", "a")), "candidates: 'a' is named twice"),
        (replace(QUERY, candidates=("1", "b", "1.0")), "candidates: '1' is named twice"),
        (replace(QUERY, user_id=" "), "user_id: it is empty"),
        (replace(QUERY, candidates=tuple("abcdef")), "candidates: 6 are more than the 5"),
        (replace(QUERY, limit=6), "limit: 6 is more than 5"),
        (replace(QUERY, idempotency_key="k" * 129), "idempotency_key: it has 129 bytes"),
        (replace(QUERY, context={"hour": float("nan")}), r"context\.hour: nan is not finite"),
        (replace(QUERY, context={" hour": 1}), "context: the name ' hour' has blanks around it"),
        (replace(QUERY, profile={"bio": "x" * 163_840}), r"profile\.bio: it has 163840 bytes; a text has at most 16384"),
        (replace(QUERY, context={f"n{number}": number for number in range(10_240)}), "context: there are 10240; at most 1024"),
        (replace(QUERY, profile={f"n{number}": "x" * 16_000 for number in range(50)}), "profile: together they have .* at most 65536"),
    ],
)
def test_a_bad_request_is_refused_and_the_field_named(query, message):
    with pytest.raises(InvalidInput, match=message):
        checked(query, LIMITS)


async def test_a_float_from_pandas_is_the_same_user_and_the_same_item() -> None:
    world = World()
    for user_id, item_id in (("7.0", "50.0"), (" 7", "50 ")):
        answer = await world.ask(Query(user_id=user_id, candidates=(item_id, "007")))
        assert [item.item_id for item in answer.ranking.items] == ["50", "007"]
    assert (
        {exposure.user_id for exposure in world.exposures.exposures} == {query.user_id for query, _, _ in world.recommender.calls} == {"7"}
    )


def test_ids_of_exactly_128_bytes_are_taken():
    checked(Query(user_id="u" * 128, candidates=("é" * 64,), idempotency_key="k" * 128), LIMITS)


@pytest.mark.parametrize(
    ("candidates", "limit", "expected"), [(("a", "b", "c"), 0, 3), (("a", "b", "c"), 2, 2), (("a",), 4, 1), ((), 0, 2), ((), 4, 4)]
)
def test_a_limit_of_zero_means_all_candidates_or_the_default(candidates, limit, expected):
    assert checked(Query(user_id="u", candidates=candidates, limit=limit), LIMITS).limit == expected


async def test_an_answer_is_logged_as_exposed_once_with_what_was_shown():
    world = World()
    answer = await world.ask(replace(QUERY, idempotency_key="k"))
    (exposure,) = world.exposures.exposures
    assert exposure.recommendation is answer
    assert answer.request_id == "1700000000000-1" and answer.variant == "default" and answer.experiment == ""
    assert (exposure.user_id, exposure.idempotency_key, exposure.exposed_at_ms) == ("u", "k", 1_700_000_000_000)
    assert exposure.candidates_given


async def test_what_the_request_brings_is_handed_on_and_logged():
    world = World()
    query = replace(QUERY, context={"page": "home", "hour": 21}, profile={"age": 31})
    await world.ask(query)
    (exposure,) = world.exposures.exposures
    assert (exposure.context, exposure.profile) == (query.context, query.profile)
    ((asked, _, _),) = world.recommender.calls
    assert (asked.context, asked.profile) == (query.context, query.profile)
    await world.ask(QUERY)
    assert not world.exposures.exposures[-1].context and not world.exposures.exposures[-1].profile


@pytest.mark.parametrize("change", [{"context": {"page": "cart"}}, {"context": {}}, {"profile": {"age": 32}}, {"profile": {}}])
async def test_a_key_belongs_to_one_context_and_one_profile(change):
    world = World()
    query = replace(QUERY, idempotency_key="k", context={"page": "home", "tags": ("a", "b")}, profile={"age": 31})
    first = await world.ask(query)
    again = replace(query, context={"tags": ("a", "b"), "page": "home"})  # in another order
    assert await world.ask(again) is first
    with pytest.raises(InvalidInput, match="idempotency_key: it was used for a request with other candidates, limit, context or profile"):
        await world.ask(replace(query, **change))


async def test_an_open_request_is_logged_as_one_without_candidates():
    world = World()
    await world.ask(Query(user_id="u"))
    assert not world.exposures.exposures[0].candidates_given


async def test_an_answer_without_items_is_not_an_exposure():
    world = World()

    async def nothing(query, **_):
        return replace(ranking_of(query), items=[])

    world.recommender.recommend = nothing  # type: ignore[method-assign]
    assert (await world.ask(QUERY)).request_id
    assert world.exposures.exposures == []


async def test_an_unavailable_recommender_is_asked_once_more_and_then_waited_for():
    world = World(RecommenderUnavailable("down"))
    assert (await world.ask(QUERY)).ranking.model_version == "1.7"
    assert [wait_for_ready for _, _, wait_for_ready in world.recommender.calls] == [False, True]


async def test_the_second_failure_is_told_to_the_caller():
    world = World(RecommenderUnavailable("down"), RecommenderUnavailable("still down"))
    with pytest.raises(Unavailable, match="still down"):
        await world.ask(QUERY)
    assert world.exposures.exposures == []


async def test_a_recommender_that_stays_unreachable_until_the_deadline_is_unavailable():
    world = World(RecommenderUnavailable("down"), RecommenderTooSlow("no connection"))
    with pytest.raises(RecommenderUnavailable, match="down"):
        await world.ask(QUERY)


@pytest.mark.parametrize("error", [RecommenderTooSlow("slow"), Overloaded("full"), InvalidInput("odd")])
def test_what_a_second_attempt_cannot_mend_is_not_tried_again(error):
    world = World(error)
    with pytest.raises(type(error)):
        asyncio.run(world.ask(QUERY))
    assert len(world.recommender.calls) == 1


async def test_no_second_attempt_is_made_when_the_deadline_has_passed():
    world = World()

    async def slow_failure(query, **_):
        world.clock.now_s += 1.0
        raise RecommenderUnavailable("down")

    world.recommender.recommend = slow_failure  # type: ignore[method-assign]
    with pytest.raises(RecommenderUnavailable):
        await world.ask(QUERY)


@pytest.mark.parametrize(("remaining_s", "expected"), [(None, 1.0), (0.4, 0.4), (60.0, 4.0)])
async def test_the_recommender_gets_the_callers_deadline_within_the_routers_bounds(remaining_s, expected):
    world = World()
    await world.ask(QUERY, remaining_s)
    assert world.recommender.calls[0][1] == pytest.approx(expected)


async def test_a_deadline_that_is_as_good_as_over_is_not_spent_on_an_attempt():
    world = World()
    with pytest.raises(RecommenderTooSlow):
        await world.ask(QUERY, 0.001)
    assert world.recommender.calls == []


async def test_a_retry_with_the_same_key_gets_the_same_answer_and_no_second_exposure():
    world = World()
    first = await world.ask(replace(QUERY, idempotency_key="k"))
    assert await world.ask(replace(QUERY, idempotency_key="k")) is first
    assert len(world.recommender.calls) == len(world.exposures.exposures) == 1


async def test_the_same_key_of_another_user_is_another_request():
    world = World()
    first = await world.ask(replace(QUERY, idempotency_key="k"))
    assert (await world.ask(replace(QUERY, user_id="v", idempotency_key="k"))).request_id != first.request_id


async def test_without_a_key_every_call_is_a_request_of_its_own():
    world = World()
    assert (await world.ask(QUERY)).request_id != (await world.ask(QUERY)).request_id


async def test_a_key_that_comes_back_with_other_candidates_is_refused():
    world = World()
    await world.ask(replace(QUERY, idempotency_key="k"))
    with pytest.raises(InvalidInput, match="idempotency_key"):
        await world.ask(replace(QUERY, candidates=("z",), idempotency_key="k"))


async def test_an_answer_is_forgotten_after_its_time():
    world = World(ttl_s=60.0)
    first = await world.ask(replace(QUERY, idempotency_key="k"))
    world.clock.now_s += 61.0
    assert (await world.ask(replace(QUERY, idempotency_key="k"))).request_id != first.request_id


async def test_only_so_many_answers_are_kept_and_the_oldest_goes_first():
    world = World(max_entries=2)
    answers = [await world.ask(replace(QUERY, idempotency_key=key)) for key in ("k1", "k2", "k3")]
    assert await world.ask(replace(QUERY, idempotency_key="k3")) is answers[2]
    assert await world.ask(replace(QUERY, idempotency_key="k2")) is answers[1]
    assert await world.ask(replace(QUERY, idempotency_key="k1")) is not answers[0]


async def test_a_failure_is_not_kept_so_that_a_retry_can_succeed():
    world = World(RecommenderTooSlow("slow"))
    query = replace(QUERY, idempotency_key="k")
    with pytest.raises(RecommenderTooSlow):
        await world.ask(query)
    assert (await world.ask(query)).request_id


class SlowRecommender(FakeRecommender):
    """Answers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()

    async def recommend(self, query, *, timeout_s, wait_for_ready):
        self.calls.append((query, timeout_s, wait_for_ready))
        await self.release.wait()
        return ranking_of(query)


async def test_overlapping_attempts_with_one_key_share_one_answer():
    world = World()
    world.router._recommender = world.recommender = SlowRecommender()
    query = replace(QUERY, idempotency_key="k")
    both = asyncio.gather(world.ask(query), world.ask(query))
    await asyncio.sleep(0)
    world.recommender.release.set()
    first, second = await both
    assert first is second
    assert len(world.recommender.calls) == len(world.exposures.exposures) == 1


async def test_a_repetition_waits_no_longer_than_its_own_deadline():
    world = World()
    world.router._recommender = world.recommender = SlowRecommender()
    query = replace(QUERY, idempotency_key="k")
    first = asyncio.ensure_future(world.ask(query, 10.0))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="the first attempt with this idempotency_key has no answer yet"):
        await world.ask(query, 0.05)
    world.recommender.release.set()
    assert (await first).request_id and len(world.recommender.calls) == 1


async def test_a_repetition_with_time_left_asks_anew_when_the_first_attempts_time_is_over():
    class SlowOnce(SlowRecommender):
        async def recommend(self, query, *, timeout_s, wait_for_ready):
            answer = await super().recommend(query, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
            if len(self.calls) == 1:
                raise RecommenderTooSlow("did not answer in 100 ms")
            return answer

    world = World()
    world.router._recommender = world.recommender = SlowOnce()
    query = replace(QUERY, idempotency_key="k")
    first, second, third = (asyncio.ensure_future(world.ask(query, left_s)) for left_s in (0.1, 5.0, 5.0))
    await asyncio.sleep(0.01)
    world.recommender.release.set()
    with pytest.raises(RecommenderTooSlow):
        await first
    assert (await second) is (await third)
    assert len(world.recommender.calls) == 2 and len(world.exposures.exposures) == 1


@pytest.mark.parametrize(("one", "other"), [({"a": -1}, {"a": -2}), ({"a": 1}, {"a": True}), ({"a": "1"}, {"a": 1}), ({}, {"a": 0})])
async def test_a_key_that_comes_back_with_another_context_is_refused(one, other):
    world = World()
    await world.ask(replace(QUERY, idempotency_key="k", context=one))
    with pytest.raises(InvalidInput, match="idempotency_key"):
        await world.ask(replace(QUERY, idempotency_key="k", context=other))
    await world.ask(replace(QUERY, idempotency_key="k2", context={"a": 1, "b": 2}))
    await world.ask(replace(QUERY, idempotency_key="k2", context={"b": 2, "a": 1}))


async def test_when_the_first_caller_goes_away_the_other_is_told_to_retry():
    world = World()
    world.router._recommender = world.recommender = SlowRecommender()
    query = replace(QUERY, idempotency_key="k")
    first = asyncio.ensure_future(world.ask(query))
    second = asyncio.ensure_future(world.ask(query))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(Unavailable, match="retry with the same key"):
        await second
    world.recommender.release.set()
    assert (await world.ask(query)).request_id


async def test_more_requests_than_the_entrance_lets_in_are_refused_and_a_repetition_of_one_under_way_is_not():
    world = World()
    world.router._recommender = world.recommender = SlowRecommender()
    queries = [replace(QUERY, user_id=user, idempotency_key="k") for user in ("u", "v")]
    asking = [asyncio.ensure_future(world.ask(query)) for query in (*queries, queries[0])]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match="it works on 2, as many as are answered in time") as refused:
        await world.ask(replace(QUERY, user_id="w"))
    assert refused.value.retry_after_s == 0.02
    world.recommender.release.set()
    first, _, again = await asyncio.gather(*asking)
    assert first is again and len(world.recommender.calls) == 2
    assert (await world.ask(replace(QUERY, user_id="w"))).request_id
