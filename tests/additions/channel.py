"""Prints, as JSON, the names of the recall channels, and what a user with history and one without are recommended, with the reasons."""

import asyncio
import json

from services.recommender.channels.registry import recall_channels
from services.recommender.core import Recommender
from tests.recommender_fakes import SPEC, Fixture, query

fixture = Fixture()
fixture.features.rate("7", "seen", 5.0, ["Drama"])
fixture.catalog.by_item = {"new drama": ("Drama",), "new comedy": ("Comedy",), "seen": ("Drama",)}
channels = recall_channels(fixture.sources())
core = Recommender(
    spec=SPEC,
    rules=fixture.rules,
    limits=fixture.limits,
    features=fixture.features,
    ranker=fixture.ranker,
    catalog=fixture.catalog,
    channels=channels,
)


async def reasons_of(user_id: str) -> dict[str, list[str]]:
    answer = await core.recommend(query(user_id=user_id))
    return {item.item_id: list(item.reasons) for item in answer.items}


print(json.dumps([[channel.name for channel in channels], asyncio.run(reasons_of("7")), asyncio.run(reasons_of("never seen"))]))
