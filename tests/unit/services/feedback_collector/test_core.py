import asyncio
from dataclasses import replace

import pytest

from services.common.platform.errors import InvalidInput, Unavailable
from services.feedback_collector.core import AcceptedIds, Collector, Feedback
from tests.edge_fakes import FakeFeedbackLog

CLICK = Feedback(feedback_id="f1", request_id="r", user_id="u", item_id="i", kind="click", value=1.0)


THUMB = Feedback(feedback_id="f1", request_id="r", user_id="u", item_id="", kind="boolean", value=1.0)


class World:
    def __init__(self, *failures: Exception, log=None, max_ids: int = 10, ttl_ms: int = 1_000) -> None:
        self.now_ms = 5_000
        self.log = log or FakeFeedbackLog(failures=list(failures))
        accepted = AcceptedIds(max_ids=max_ids, ttl_ms=ttl_ms)
        self.collector = Collector(self.log, accepted, max_batch=3, wall_ms=lambda: self.now_ms)

    async def submit(self, *feedback: Feedback):
        return await self.collector.submit(feedback, remaining_s=None)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (replace(CLICK, feedback_id=""), r"feedback\[1\].feedback_id: it is empty"),
        (replace(CLICK, request_id=""), r"feedback\[1\].request_id: it is empty"),
        (replace(CLICK, user_id="u" * 129), r"feedback\[1\].user_id: it has 129 bytes"),
        (replace(CLICK, item_id="é" * 65), r"feedback\[1\].item_id: it has 130 bytes"),
        (replace(CLICK, kind=""), r"feedback\[1\].kind: it is empty"),
        (replace(CLICK, kind="k" * 65), r"feedback\[1\].kind: it has 65 bytes"),
        (replace(CLICK, value=float("nan")), r"feedback\[1\].value: nan is not finite"),
        (replace(CLICK, value=float("-inf")), r"feedback\[1\].value: -inf is not finite"),
        (replace(CLICK, accepted_at_ms=7), r"feedback\[1\].accepted_at_ms: it must be 0"),
        (replace(CLICK, original_time_ms=-1), r"feedback\[1\].original_time_ms: -1 is negative"),
        (replace(CLICK, item_id=""), r"feedback\[1\].item_id: it is empty"),
        (replace(CLICK, text="nice"), r"feedback\[1\].text: only a comment or a demonstration has one"),
        (replace(THUMB, item_id="i"), r"feedback\[1\].item_id: it must be empty; a boolean is about an answer"),
        (replace(THUMB, value=0.5), r"feedback\[1\].value: 0.5 is neither 0 nor 1"),
        (replace(THUMB, text="nice"), r"feedback\[1\].text: a boolean has none"),
        (replace(THUMB, kind="score", value=1.01), r"feedback\[1\].value: 1.01 is not within 0 and 1"),
        (replace(THUMB, kind="comment"), r"feedback\[1\].text: it has 0 bytes"),
        (replace(THUMB, kind="comment", text=" \n"), r"feedback\[1\].text: it has 2 bytes; .* not only blanks"),
        (replace(THUMB, kind="demonstration", text="é" * 8_193), r"feedback\[1\].text: it has 16386 bytes"),
    ],
)
async def test_one_bad_item_refuses_the_whole_call_names_the_field_and_writes_nothing(item, message):
    world = World()
    with pytest.raises(InvalidInput, match=message):
        await world.submit(replace(CLICK, feedback_id="good"), item)
    assert world.log.written == []


@pytest.mark.parametrize(
    "item",
    [
        THUMB,
        replace(THUMB, value=0.0),
        replace(THUMB, kind="score", value=0.25),
        replace(THUMB, kind="comment", text="wrong year"),
        replace(THUMB, kind="demonstration", text="é" * 8_192),
    ],
)
async def test_feedback_about_an_answer_is_taken_as_its_kind_asks_for(item):
    world = World()
    await world.submit(item)
    assert [(written.kind, written.value, written.text) for written in world.log.written] == [(item.kind, item.value, item.text)]


@pytest.mark.parametrize("number", [0, 4])
async def test_a_call_takes_at_least_one_and_at_most_so_many_items(number):
    with pytest.raises(InvalidInput, match=f"{number} items; one call takes 1 to 3"):
        await World().submit(*[replace(CLICK, feedback_id=f"f{index}") for index in range(number)])


async def test_accepted_feedback_is_written_with_its_time_and_acknowledged_in_order():
    world = World()
    receipts = await world.submit(CLICK, replace(CLICK, feedback_id="f2"))
    assert [item.feedback_id for item in world.log.written] == ["f1", "f2"]
    assert {item.accepted_at_ms for item in world.log.written} == {5_000}
    assert [(receipt.feedback_id, receipt.accepted_at_ms, receipt.duplicate) for receipt in receipts] == [
        ("f1", 5_000, False),
        ("f2", 5_000, False),
    ]


async def test_a_repeat_is_not_written_again_and_gets_the_first_time():
    world = World()
    await world.submit(CLICK)
    world.now_ms = 5_500
    (receipt,) = await world.submit(CLICK)
    assert (receipt.accepted_at_ms, receipt.duplicate) == (5_000, True)
    assert len(world.log.written) == 1


async def test_a_repeat_beside_something_new_writes_only_what_is_new():
    world = World()
    await world.submit(CLICK)
    receipts = await world.submit(CLICK, replace(CLICK, feedback_id="f2"))
    assert [receipt.duplicate for receipt in receipts] == [True, False]
    assert [item.feedback_id for item in world.log.written] == ["f1", "f2"]


@pytest.mark.parametrize("changes", [{"user_id": "v"}, {"request_id": "s"}, {"user_id": "v", "item_id": "j"}])
async def test_the_same_id_of_another_user_or_about_another_request_is_another_act(changes):
    world = World()
    await world.submit(CLICK)
    other = replace(CLICK, **changes)
    (receipt,) = await world.submit(other)
    assert not receipt.duplicate
    (first, second) = await world.submit(CLICK, other)
    assert first.duplicate and second.duplicate
    assert [(item.user_id, item.request_id) for item in world.log.written] == [("u", "r"), (other.user_id, other.request_id)]


async def test_an_id_named_twice_in_one_call_is_one_act():
    world = World()
    receipts = await world.submit(CLICK, CLICK)
    assert [receipt.duplicate for receipt in receipts] == [False, True]
    assert len(world.log.written) == 1


async def test_an_id_is_forgotten_after_its_time_and_beyond_the_bound():
    world = World(max_ids=1, ttl_ms=1_000)
    await world.submit(CLICK)
    world.now_ms += 1_001
    assert not (await world.submit(CLICK))[0].duplicate
    await world.submit(replace(CLICK, feedback_id="f2"))
    assert not (await world.submit(CLICK))[0].duplicate


async def test_what_the_broker_did_not_acknowledge_can_be_submitted_again():
    world = World(Unavailable("Kafka is down"))
    with pytest.raises(Unavailable, match="Kafka is down"):
        await world.submit(CLICK)
    (receipt,) = await world.submit(CLICK)
    assert not receipt.duplicate
    assert len(world.log.written) == 1


class SlowLog(FakeFeedbackLog):
    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()

    async def write(self, feedback, *, timeout_s):
        await self.release.wait()
        await super().write(feedback, timeout_s=timeout_s)


async def test_two_calls_with_one_id_at_a_time_write_it_once():
    world = World(log=SlowLog())
    both = asyncio.gather(world.submit(CLICK), world.submit(CLICK))
    await asyncio.sleep(0)
    world.log.release.set()
    receipts = [receipt for answer in await both for receipt in answer]
    assert sorted(receipt.duplicate for receipt in receipts) == [False, True]
    assert len(world.log.written) == 1


async def test_when_the_first_caller_goes_away_the_other_is_told_to_retry():
    world = World(log=SlowLog())
    first, second = asyncio.ensure_future(world.submit(CLICK)), asyncio.ensure_future(world.submit(CLICK))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(Unavailable, match="retry with the same id"):
        await second
    world.log.release.set()
    assert (await world.submit(CLICK))[0].accepted_at_ms == 5_000
