"""The recall channels together: open requests are answered as recorded, item by item, with the same reasons and losses.

`python -m tests.unit.services.recommender.channels.test_recorded_recalls` records the answers anew, for a change that is meant.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

from services.recommender.core import Answer, RecallLimits
from services.recommender.rules import Rules
from tests.recommender_fakes import Fixture, query

# What `seeded_requests` were answered when the recording was made: per request the degraded reasons and (item id, reasons) in order.
RECORDING = Path(__file__).with_name("recorded_recalls.json")
NUM_FIXTURES = 40


def seeded_fixture(source: random.Random) -> Fixture:
    """Some acts, neighbours, embeddings and rules; in one of four the store is down, in one of five the ranker."""
    items = [str(number) for number in range(source.choice([5, 40, 150]))]
    users = [f"user-{number}" for number in range(8)]
    fixture = Fixture(limits=RecallLimits(per_channel=source.choice([3, 20]), total=source.choice([4, 30]), seeds=source.choice([1, 5])))
    fixture.catalog.by_item = {item: (f"genre-{source.randrange(4)}",) for item in source.sample(items, len(items) // 2)}
    fixture.catalog.is_ready = source.random() < 0.9
    for _ in range(source.choice([0, 30, 200])):
        fixture.features.rate(source.choice(users), source.choice(items), float(source.randint(1, 5)))
    for item in items:
        near = source.sample(items, source.randint(0, 5))
        fixture.features.similar[item] = [(other, float(source.randint(1, 9))) for other in near]
    fixture.nearest.by_user = {user: source.sample(items, source.randint(0, len(items))) for user in users[:6]}
    fixture.features.is_down = source.random() < 0.25
    fixture.ranker.is_down = source.random() < 0.2
    if source.random() < 0.5:
        fixture.rules = Rules(exclude_items=frozenset(source.sample(items, 2)), max_per_category=2, within_top=6)
    return fixture


def described(answer: Answer) -> list[object]:
    return [list(answer.degraded), [[item.item_id, list(item.reasons)] for item in answer.items]]


async def answers() -> list[list[object]]:
    found = []
    for fixture, user in seeded_requests():
        found.append(described(await fixture.core().recommend(query(user_id=user, limit=50))))
    return found


def seeded_requests() -> Iterator[tuple[Fixture, str]]:
    for number in range(NUM_FIXTURES):
        fixture = seeded_fixture(random.Random(number))
        for user in ("user-0", "user-7", "never seen"):
            yield fixture, user


async def test_open_requests_are_answered_as_recorded() -> None:
    recorded = json.loads(RECORDING.read_text())
    assert len(recorded) == 3 * NUM_FIXTURES
    assert await answers() == recorded
    reasons = {reason.partition(":")[0] for _, items in recorded for _, own in items for reason in own}
    assert reasons == {"embedding", "similar_to", "popular", "cold_start"}, "the recording shows every channel"


if __name__ == "__main__":
    RECORDING.write_text("[\n" + ",\n".join(json.dumps(answer, separators=(",", ":")) for answer in asyncio.run(answers())) + "\n]\n")
