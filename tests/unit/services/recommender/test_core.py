import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.common.platform.errors import Unavailable
from services.common.ranker import exposure_block
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, merge_item_bytes
from services.recommender.core import FeaturesUnavailable, InvalidQuery, Recommender, popularity
from services.recommender.recall import Proposal, RecallChannel, RecallRequest
from services.recommender.rules import Rules
from tests.limits import seconds
from tests.recommender_fakes import SPEC, FakeCatalog, Fixture, query


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]


async def test_candidates_are_sorted_by_the_blend_of_the_tasks():
    fixture = Fixture()
    answer = await fixture.core().recommend(query(candidates=["5", "900", "30"]))
    assert ids(answer) == ["900", "30", "5"]
    assert answer.items[0].score == pytest.approx(0.9**1.5, rel=1e-5)
    assert answer.items[0].task_scores == pytest.approx((0.9, 0.9))
    assert (answer.version.epoch, answer.version.seq_min, answer.version.seq_max) == (3, 41, 42)
    assert answer.degraded == ()


async def test_a_float_of_a_client_is_the_item_that_the_catalogue_knows():
    assert ids(await Fixture().core().recommend(query(user_id="7.0", candidates=["5.0", " 900"]))) == ["900", "5"]
    with pytest.raises(InvalidQuery, match="an item is named twice"):
        query(candidates=["5", "5.0"])


async def test_equal_scores_keep_the_order_in_which_the_client_gave_them():
    fixture = Fixture()
    fixture.ranker.score_of = lambda key: 0.5
    assert ids(await fixture.core().recommend(query(candidates=["c", "a", "b"]))) == ["c", "a", "b"]


async def test_the_logged_block_holds_the_scored_rows_of_the_returned_items_in_their_order():
    fixture = Fixture()
    for rater in range(3):
        fixture.features.rate(str(rater), "30", 5.0)
    answer = await fixture.core().recommend(query(candidates=["5", "900", "30"], limit=2))
    scored = exposure_block.decode(fixture.ranker.blocks[0], SPEC)
    logged = exposure_block.decode(answer.features_block, SPEC)
    assert ids(answer) == ["900", "30"]
    assert (logged.items_NF == scored.items_NF[[1, 2]]).all()
    assert not (scored.items_NF[1] == scored.items_NF[2]).all()


async def test_an_unknown_user_and_unknown_items_get_the_cold_start_features_and_say_so():
    fixture = Fixture()
    answer = await fixture.core().recommend(query(user_id="nobody", candidates=["x", "y"]))
    expected = build_features(SPEC, "nobody", None, merge_item_bytes(SPEC, [[None, None]], [None]), [(), ()], GlobalState())
    assert fixture.ranker.blocks == [exposure_block.encode(expected, SPEC.schema_hash)]
    assert all(list(item.reasons) == ["candidate", "cold_start"] for item in answer.items)
    assert answer.degraded == ()


async def test_a_known_item_is_no_cold_start():
    fixture = Fixture()
    fixture.features.rate("1", "30", 4.0)
    answer = await fixture.core().recommend(query(candidates=["30", "31"]))
    assert {item.item_id: list(item.reasons) for item in answer.items} == {"30": ["candidate"], "31": ["candidate", "cold_start"]}


async def test_without_features_the_ranker_still_scores_but_nothing_is_logged_for_learning():
    fixture = Fixture()
    fixture.features.is_down = True
    answer = await fixture.core().recommend(query(candidates=["5", "900"]))
    assert ids(answer) == ["900", "5"]
    assert answer.degraded == ("features_unavailable",)
    assert answer.features_block == b""
    assert all("cold_start" not in item.reasons for item in answer.items)


async def test_without_the_ranker_items_are_ordered_by_recent_popularity():
    fixture = Fixture()
    fixture.ranker.is_down = True
    for rater in range(3):
        fixture.features.rate(str(rater), "5", 1.0)
    fixture.features.rate("9", "900", 5.0)
    answer = await fixture.core().recommend(query(candidates=["30", "900", "5"]))
    assert ids(answer) == ["5", "900", "30"]
    assert answer.degraded == ("ranker_unavailable",)
    assert answer.version is None
    assert all(not item.task_scores for item in answer.items)
    assert answer.features_block != b""


async def test_without_features_and_ranker_the_client_gets_its_own_order_back():
    fixture = Fixture()
    fixture.ranker.is_down = fixture.features.is_down = True
    answer = await fixture.core().recommend(query(candidates=["30", "900", "5"]))
    assert ids(answer) == ["30", "900", "5"]
    assert answer.degraded == ("features_unavailable", "ranker_unavailable")


async def test_a_catalogue_that_was_never_read_is_named():
    fixture = Fixture(catalog=FakeCatalog(is_ready=False))
    assert (await fixture.core().recommend(query(candidates=["1"]))).degraded == ("catalog_unavailable",)


async def test_excluded_items_are_not_returned_even_when_named():
    fixture = Fixture(rules=Rules(exclude_items=frozenset({"900"}), exclude_categories=frozenset({"Horror"})))
    fixture.catalog.by_item = {"800": ("Drama", "Horror")}
    assert ids(await fixture.core().recommend(query(candidates=["5", "900", "800"]))) == ["5"]


async def test_nothing_left_to_rank_is_an_empty_answer():
    fixture = Fixture(rules=Rules(exclude_items=frozenset({"5"})))
    answer = await fixture.core().recommend(query(candidates=["5"]))
    assert not answer.items and answer.features_block == b"" and not fixture.ranker.blocks


async def test_the_diversity_rule_leaves_named_candidates_alone():
    fixture = Fixture(rules=Rules(max_per_category=1, within_top=2))
    fixture.catalog.by_item = {"3": ("Drama",), "2": ("Drama",), "1": ("Comedy",)}
    assert ids(await fixture.core().recommend(query(candidates=["1", "2", "3"]))) == ["3", "2", "1"]


def open_fixture() -> Fixture:
    fixture = Fixture()
    fixture.catalog.by_item = {str(number): ("Drama",) for number in range(100, 110)}
    for rater in range(5):
        fixture.features.rate(str(rater), "200", 5.0)
    fixture.features.rate("7", "300", 5.0)
    fixture.features.similar = {"300": [("400", 3.0), ("300", 9.0)]}
    fixture.nearest.by_user = {"7": ["500", "400"]}
    return fixture


async def test_an_open_request_recalls_from_every_channel_and_says_why_each_item_is_there():
    answer = await open_fixture().core().recommend(query(limit=30))
    reasons = {item.item_id: set(item.reasons) - {"cold_start"} for item in answer.items}
    assert reasons["500"] == {"embedding"}
    assert reasons["400"] == {"embedding", "similar_to:300"}
    assert reasons["200"] == {"popular"}
    assert {item.item_id for item in answer.items if item.reasons == ["cold_start"]} == {str(number) for number in range(100, 110)}


async def test_recall_by_embedding_knows_the_users_latest_items():
    fixture = open_fixture()
    fixture.features.rate("7", "301", 2.0)
    await fixture.core().recommend(query())
    assert fixture.nearest.histories == [["301", "300"]]


async def test_an_open_request_leaves_out_what_the_user_has_seen():
    answer = await open_fixture().core().recommend(query(limit=30))
    assert "300" not in ids(answer)


async def test_named_candidates_are_ranked_even_when_the_user_has_seen_them():
    assert "300" in ids(await open_fixture().core().recommend(query(candidates=["300", "5"])))


async def test_an_open_request_without_features_lives_on_embeddings_and_new_items():
    fixture = open_fixture()
    fixture.features.is_down = True
    answer = await fixture.core().recommend(query(limit=30))
    assert {"500", "400", "100"} <= set(ids(answer))
    assert answer.degraded == ("features_unavailable",)
    assert fixture.features.calls == ["user"], "a store that failed once is not asked again in the same request"


async def test_an_open_request_for_an_unknown_user_gets_popular_and_new_items():
    answer = await open_fixture().core().recommend(query(user_id="nobody", limit=30))
    assert {"200", "100"} <= set(ids(answer))
    assert not any(reason.startswith(("similar_to", "embedding")) for item in answer.items for reason in item.reasons)


async def test_an_open_request_obeys_the_diversity_rule():
    fixture = open_fixture()
    fixture.rules = Rules(max_per_category=2, within_top=4)
    answer = await fixture.core().recommend(query(limit=30))
    top = [item_id for item_id in ids(answer)[:4] if item_id in fixture.catalog.by_item]
    assert len(top) <= 2
    assert len(ids(answer)) == len(set(ids(answer))) == 13


async def test_an_open_request_with_nothing_to_recall_from_is_empty_and_says_what_is_missing():
    fixture = Fixture(catalog=FakeCatalog(is_ready=False))
    fixture.features.is_down = True
    answer = await fixture.core().recommend(query())
    assert not answer.items and answer.degraded == ("catalog_unavailable", "features_unavailable")


@pytest.mark.parametrize(
    ("user_id", "candidates", "limit", "message"),
    [
        ("", ["1"], 1, "user_id: it is empty"),
        ("u" * 129, ["1"], 1, "user_id: it has 129 bytes"),
        ("ü" * 65, ["1"], 1, "user_id: it has 130 bytes"),
        ("u", ["1", ""], 1, r"candidates\[1\]: it is empty"),
        ("u", ["1", "2", "1"], 1, "named twice"),
        ("u", ["1", "2", "3", "4"], 1, "4 given, at most 3"),
        ("u", ["1"], 0, "limit: must be at least 1"),
    ],
)
def test_a_query_that_breaks_the_contract_is_refused_with_the_reason(user_id, candidates, limit, message):
    with pytest.raises(InvalidQuery, match=message):
        query(user_id, candidates, limit, max_candidates=3)


def test_ids_up_to_128_bytes_are_accepted():
    assert query("ü" * 64, ["1"]).user_id == "ü" * 64


async def test_popularity_prefers_recent_acts_and_breaks_ties_by_all_acts():
    fixture = Fixture()
    for rater in range(3):
        fixture.features.rate(str(rater), "old", 5.0)
    for rater in range(3000):
        fixture.features.rate(f"b{rater}", f"other{rater}", 3.0)
    fixture.features.rate("z", "new", 1.0)
    state = await fixture.features.read("z", ["old", "new", "never"])
    old, new, never = popularity(state.items)
    assert new > old > never == 0


@dataclass
class Channel:
    """Proposes what it is given, or raises it; before that it lets others begin."""

    name: str
    gives: list[str] | Exception
    asked: list[RecallRequest] = field(default_factory=list)

    async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
        self.asked.append(request)
        await asyncio.sleep(0)
        if isinstance(self.gives, Exception):
            raise self.gives
        return [Proposal(item_id, self.name) for item_id in self.gives][:limit]


def core_with(fixture: Fixture, *channels: RecallChannel) -> Recommender:
    return Recommender(
        spec=SPEC,
        rules=fixture.rules,
        limits=fixture.limits,
        features=fixture.features,
        ranker=fixture.ranker,
        catalog=fixture.catalog,
        channels=channels,
    )


async def test_a_channel_without_its_source_is_named_and_the_others_answer():
    lost, mute = Channel("clips", Unavailable("down")), Channel("popular", FeaturesUnavailable("down"))
    answer = await core_with(Fixture(), lost, Channel("embedding", ["5"]), mute, Channel("trend", ["6"])).recommend(query())
    assert {item.item_id for item in answer.items} == {"5", "6"}
    assert answer.degraded == ("clips_unavailable", "features_unavailable")


async def test_two_channels_that_miss_the_features_name_them_once():
    channels = [Channel(name, FeaturesUnavailable("down")) for name in ("a", "b")]
    assert (await core_with(Fixture(), *channels).recommend(query())).degraded == ("features_unavailable",)


async def test_a_defect_of_a_channel_is_no_degraded_answer():
    with pytest.raises(ZeroDivisionError):
        await core_with(Fixture(), Channel("a", ZeroDivisionError()), Channel("b", ["5"])).recommend(query())


async def test_every_channel_learns_who_asks_and_whether_the_features_can_be_read():
    fixture = open_fixture()
    channel = Channel("a", [])
    await core_with(fixture, channel).recommend(query())
    fixture.features.is_down = True
    await core_with(fixture, channel).recommend(query())
    known, unread = channel.asked
    assert (known.user_id, known.history, known.has_features) == ("7", ["300"], True)
    assert (unread.user_id, unread.history, unread.has_features) == ("7", [], False)


async def test_channels_are_asked_side_by_side():
    """Each waits until the other was asked: one after the other they would wait for ever."""

    class Waiting:
        def __init__(self, name: str, own: asyncio.Event, other: asyncio.Event) -> None:
            self.name, self._own, self._other = name, own, other

        async def propose(self, request: RecallRequest, limit: int) -> Sequence[Proposal]:
            self._own.set()
            await self._other.wait()
            return [Proposal(self.name, self.name)]

    one, two = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(seconds(60)):
        answer = await core_with(Fixture(), Waiting("1", one, two), Waiting("2", two, one)).recommend(query())
    assert sorted(ids(answer)) == ["1", "2"]
