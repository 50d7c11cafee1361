import asyncio
from collections.abc import Callable

from streams.partitioned.reading_order import ReadingOrder
from tests.limits import seconds


def waiting(order: ReadingOrder, *, may_read: Callable[[], bool], has_room: Callable[[], bool] = lambda: True) -> asyncio.Task[None]:
    return asyncio.create_task(order.wait(has_room=has_room, may_read=may_read))


async def test_a_stream_waits_until_the_other_has_come_as_far():
    order, allowed = ReadingOrder(), set[str]()
    task = waiting(order, may_read=lambda: "exposures" in allowed)
    await asyncio.sleep(0.1)
    assert not task.done()
    allowed.add("exposures")
    await asyncio.wait_for(task, seconds(20))


async def test_when_both_wait_one_goes_on_and_the_other_does_not():
    order, never = ReadingOrder(), lambda: False
    tasks = [waiting(order, may_read=never) for _ in range(2)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=seconds(20))
    await asyncio.sleep(0.1)
    assert sum(task.done() for task in tasks) == 1
    for task in tasks:
        task.cancel()


async def test_a_stream_that_waits_for_room_lets_the_other_wait_its_turn():
    order, room = ReadingOrder(), set[str]()
    full = waiting(order, may_read=lambda: True, has_room=lambda: "room" in room)
    held = waiting(order, may_read=lambda: False)
    await asyncio.sleep(0.1)
    assert not full.done()
    assert not held.done()
    room.add("room")
    await asyncio.wait_for(full, seconds(20))
    held.cancel()


async def test_two_partitions_of_opposite_skew_do_not_stall_each_other():
    """Stream "a" has partition 0 first, stream "b" partition 1; each partition waits for the other stream, which stands behind."""
    order, read = ReadingOrder(), []

    async def agent(stream: str, other: str, partitions: tuple[int, int]) -> None:
        for partition in partitions:
            await order.wait(has_room=lambda: True, may_read=lambda partition=partition: (other, partition) in read)
            read.append((stream, partition))

    await asyncio.wait_for(asyncio.gather(agent("a", "b", (0, 1)), agent("b", "a", (1, 0))), seconds(20))
    assert len(read) == 4
