"""In-memory collaborators of the recommender's core, as real classes: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.common.events.attributes import NO_ATTRIBUTES, Attributes
from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.declared.plan import Part, Plan
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.recall_state import Counted
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState, merge_globals, merge_item_bytes
from services.recommender.channels.embedding import EmbeddingChannel
from services.recommender.channels.fresh import FreshChannel
from services.recommender.channels.popular import PopularChannel
from services.recommender.channels.similar import SimilarChannel
from services.recommender.core import FeaturesUnavailable, OnlineState, Query, RankerUnavailable, RecallLimits, Recommender, Scores
from services.recommender.rules import Rules
from services.recommender.sources import Sources

SPEC = FeatureSpec.load(Path(__file__).parents[1] / "model_repo" / "ranker" / "feature_spec.yaml")


@dataclass
class FakeFeatureStore:
    """Online states in dictionaries, as one partition of live feedback would have made them."""

    users: dict[str, UserState] = field(default_factory=dict)
    items: dict[str, ItemState] = field(default_factory=dict)
    total: GlobalState = field(default_factory=GlobalState)
    seen_items: dict[str, set[str]] = field(default_factory=dict)
    similar: dict[str, list[Counted]] = field(default_factory=dict)
    is_down: bool = False
    calls: list[str] = field(default_factory=list)
    profiles: dict[str, Attributes] = field(default_factory=dict)
    profiles_read: list[Attributes] = field(default_factory=list)
    """What each read answered."""

    def rate(self, user_id: str, item_id: str, value: float, categories: Sequence[str] = ()) -> None:
        act = Interaction(user_id, item_id, "rating", value, 0)
        self.total.apply(SPEC, act, categories, -1)
        self.users.setdefault(user_id, UserState()).apply(SPEC, act, categories, -1)
        self.items.setdefault(item_id, ItemState()).apply(SPEC, act, self.total.clock, -1)
        self.seen_items.setdefault(user_id, set()).add(item_id)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.is_down:
            raise FeaturesUnavailable("down")

    async def read(self, user_id: str, item_ids: Sequence[str], profile: Attributes = NO_ATTRIBUTES) -> OnlineState:
        self._called("read")
        self.profiles_read.append(profile or self.profiles.get(user_id, NO_ATTRIBUTES))
        states = [self.items[item_id].to_bytes(SPEC) if item_id in self.items else None for item_id in item_ids]
        items = merge_item_bytes(SPEC, [[None] * len(states), states], [None, self.total])
        keys_N = np.array([entity_key(item_id) for item_id in item_ids], dtype=np.int64)
        return OnlineState(self.users.get(user_id), items, keys_N, merge_globals([self.total]), self.profiles_read[-1])

    async def user(self, user_id: str) -> UserState | None:
        self._called("user")
        return self.users.get(user_id)

    async def popular(self, limit: int) -> Sequence[Counted]:
        self._called("popular")
        counts = ((item_id, state.tally.acts) for item_id, state in self.items.items())
        return sorted(counts, key=lambda counted: (-counted[1], counted[0]))[:limit]

    async def neighbours(self, item_ids: Sequence[str]) -> Sequence[tuple[str, Sequence[Counted]]]:
        self._called("neighbours")
        return [(item_id, self.similar.get(item_id, [])) for item_id in item_ids]

    async def seen(self, user_id: str, item_ids: Sequence[str]) -> frozenset[str]:
        self._called("seen")
        return frozenset(self.seen_items.get(user_id, set()).intersection(item_ids))


@dataclass
class FakeRanker:
    """Scores an item by its key: larger keys are better, unless `score_of` says otherwise."""

    score_of: Callable[[int], float] = lambda key: (key % 1000) / 1000
    is_down: bool = False
    spec: FeatureSpec = SPEC
    blocks: list[bytes] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    async def score(self, user_key: int, item_keys_N: npt.NDArray[np.int64], features_block: bytes, deadline_s: float) -> Scores:
        if self.is_down:
            raise RankerUnavailable("down")
        features = exposure_block.decode(features_block, self.spec)
        assert features.user_key == user_key
        assert len(features) == len(item_keys_N)
        self.blocks.append(features_block)
        self.deadlines.append(deadline_s)
        columns = [[self.score_of(key)] * len(SPEC.task_names) for key in item_keys_N.tolist()]
        return Scores(np.array(columns, dtype=np.float32), 3, 41, 42)


@dataclass
class FakeCatalog:
    by_item: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_ready: bool = True
    plan: Plan = field(default_factory=lambda: Plan([]))
    attributes: dict[str, Attributes] = field(default_factory=dict)

    def categories(self, item_id: str) -> Sequence[str]:
        return self.by_item.get(item_id, ())

    def categories_of(self, item_ids: Sequence[str]) -> Sequence[Sequence[str]]:
        return [self.categories(item_id) for item_id in item_ids]

    def newest(self) -> Sequence[str]:
        return tuple(self.by_item)

    def part(self, item_ids: Sequence[str]) -> Part:
        return self.plan.items([self.attributes.get(item_id, {}) for item_id in item_ids])

    def item_id(self, key: int) -> str | None:
        return next((item_id for item_id in self.by_item if entity_key(item_id) == key), None)


@dataclass
class FakeNearest:
    by_user: dict[str, list[str]] = field(default_factory=dict)

    histories: list[list[str]] = field(default_factory=list)

    async def nearest(self, user_id: str, history: Sequence[str], limit: int) -> Sequence[str]:
        self.histories.append(list(history))
        return self.by_user.get(user_id, [])[:limit]


@dataclass
class Fixture:
    """A core and its fakes. It recalls from the four channels that its tests speak of, whatever else the registry lists."""

    features: FakeFeatureStore = field(default_factory=FakeFeatureStore)
    ranker: FakeRanker = field(default_factory=FakeRanker)
    catalog: FakeCatalog = field(default_factory=FakeCatalog)
    nearest: FakeNearest = field(default_factory=FakeNearest)
    rules: Rules = field(default_factory=Rules)
    limits: RecallLimits = field(default_factory=lambda: RecallLimits(per_channel=20, total=30, seeds=5))
    spec: FeatureSpec = SPEC

    def sources(self) -> Sources:
        return Sources(features=self.features, catalog=self.catalog, nearest=self.nearest, limits=self.limits)

    def core(self) -> Recommender:
        return Recommender(
            spec=self.spec,
            rules=self.rules,
            limits=self.limits,
            features=self.features,
            ranker=self.ranker,
            catalog=self.catalog,
            channels=[channel(self.sources()) for channel in (EmbeddingChannel, SimilarChannel, PopularChannel, FreshChannel)],
        )


def query(user_id: str = "7", candidates: Sequence[str] = (), limit: int = 10, *, max_candidates: int = 500) -> Query:
    return Query.checked(user_id, candidates, limit, deadline_s=100.0, now_ms=1_700_000_000_000, max_candidates=max_candidates)
