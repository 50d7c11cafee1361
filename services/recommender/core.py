"""What the recommender decides: which items to consider, in which order to return them, and what to say when something is missing.

Orchestrates through the Protocols below; its collaborators do the I/O. Has no clock and no randomness: equal inputs give equal answers.
Shapes: N items, T tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from services.common.events.attributes import NO_ATTRIBUTES, Attributes, check
from services.common.events.limits import check_id, check_ids
from services.common.platform.errors import InvalidInput, Unavailable
from services.common.platform.ids import canonical_id, canonical_ids, entity_key
from services.common.ranker import exposure_block
from services.common.ranker.declared.plan import Part
from services.common.ranker.declared.sequences import Past
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, build_features, past_of
from services.common.ranker.recall_state import Counted
from services.common.ranker.states import GlobalState, UserState, merge_item_bytes
from services.common.ranker.tallies import ItemMatrix
from services.recommender.recall import Proposal, RecallChannel, RecallRequest, merged
from services.recommender.rules import Rules, diversified

Float32Array = npt.NDArray[np.float32]

_CANDIDATE = ("candidate",)
_COLD_CANDIDATE = ("candidate", "cold_start")

FEATURES_UNAVAILABLE = "features_unavailable"
RANKER_UNAVAILABLE = "ranker_unavailable"
CATALOG_UNAVAILABLE = "catalog_unavailable"
PROFILE_UNFIT = "profile_unfit"
"""An attribute in the user's stored profile has another type than the feature spec reads; the user is ranked without it."""


class InvalidQuery(InvalidInput):
    """A user id, candidate or limit breaks the contract. Retrying does not help."""


class FeaturesUnavailable(Unavailable):
    """The online features cannot be read, or were written under another feature spec. The core degrades on it."""


class RankerUnavailable(Unavailable):
    """Triton did not score in time, or has no base yet. The core degrades on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request. Build it with `checked`."""

    user_id: str
    candidates: tuple[str, ...]
    """Empty: recall items."""
    limit: int
    deadline_s: float
    """Monotonic time after which nobody waits for the answer."""
    context: Attributes = field(default_factory=dict)
    """Of this request alone."""
    profile: Attributes = field(default_factory=dict)
    """The user's, where the caller brings it; it stands in place of what profiles.v1 says. Empty: it does not."""
    now_ms: int
    """When it was asked, Unix milliseconds: sequences say how long ago events happened."""

    @classmethod
    def checked(
        cls,
        user_id: str,
        candidates: Sequence[str],
        limit: int,
        *,
        deadline_s: float,
        now_ms: int,
        max_candidates: int,
        context: Attributes = NO_ATTRIBUTES,
        profile: Attributes = NO_ATTRIBUTES,
    ) -> Query:
        """Return the query, with its ids in canonical form.

        Raises:
            InvalidQuery: an id is empty or too long, candidates repeat or are too many, limit is 0, or an attribute breaks its limits; the
                message names which.
        """
        if len(candidates) > max_candidates:
            raise InvalidQuery(f"candidates: {len(candidates)} given, at most {max_candidates} are allowed")
        if limit < 1:
            raise InvalidQuery("limit: must be at least 1")
        user_id, candidates = canonical_id(user_id), canonical_ids(candidates)
        check_id("user_id", user_id, InvalidQuery)
        check_ids("candidates", candidates, InvalidQuery)
        if len(set(candidates)) != len(candidates):
            raise InvalidQuery("candidates: an item is named twice")
        check("context", context, InvalidQuery)
        check("profile", profile, InvalidQuery)
        return cls(
            user_id=user_id, candidates=candidates, limit=limit, deadline_s=deadline_s, context=context, profile=profile, now_ms=now_ms
        )


@dataclass(frozen=True, slots=True)
class OnlineState:
    """What Redis knows for one request."""

    user: UserState | None
    items: ItemMatrix
    item_keys_N: npt.NDArray[np.int64]
    """The items' table keys."""
    total: GlobalState
    profile: Attributes = field(default_factory=dict)
    """The user's: of the request, or else of profiles.v1."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the ranker answered: float32 [N, T] probabilities and the versions of the rows that it used."""

    scores_NT: Float32Array
    epoch: int
    seq_min: int
    seq_max: int


class RankedItem(NamedTuple):
    """One item of the answer; fields as in tunemesh.common.v1.RankedItem."""

    item_id: str
    score: float
    task_scores: Sequence[float]
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedItems(Sequence[RankedItem]):
    """The K items of an answer, best first, as columns; a `RankedItem` is made when one is looked at."""

    item_ids: Sequence[str]
    scores_K: Float32Array
    task_scores_KT: Float32Array
    """[K, 0] when the ranker did not answer."""
    reasons: Sequence[Sequence[str]]

    @override
    def __len__(self) -> int:
        return len(self.item_ids)

    @overload
    def __getitem__(self, at: int) -> RankedItem: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RankedItem]: ...

    @override
    def __getitem__(self, at: int | slice) -> RankedItem | Sequence[RankedItem]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return RankedItem(self.item_ids[at], float(self.scores_K[at]), self.task_scores_KT[at].tolist(), self.reasons[at])


NO_ITEMS = RankedItems(item_ids=(), scores_K=np.empty(0, dtype=np.float32), task_scores_KT=np.empty((0, 0), dtype=np.float32), reasons=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one query, best first."""

    items: RankedItems
    version: Scores | None
    """None when the ranker did not answer."""
    degraded: tuple[str, ...]
    features_block: bytes
    """For the returned items in their order; empty when features were missing."""


class FeatureStore(Protocol):
    """Online features and recall lists. Every method raises FeaturesUnavailable when it cannot answer."""

    async def read(self, user_id: str, item_ids: Sequence[str], profile: Attributes = NO_ATTRIBUTES) -> OnlineState:
        """Return the states of a user and of N items, in order. Unless there is a `profile`, the user's is read with them."""

    async def user(self, user_id: str) -> UserState | None:
        """Return the state of a user; None when never seen."""

    async def popular(self, limit: int) -> Sequence[Counted]:
        """Return the most popular items of the recent window, best first."""

    async def neighbours(self, item_ids: Sequence[str]) -> Sequence[tuple[str, Sequence[Counted]]]:
        """Return, per item, the items that the same users chose."""

    async def seen(self, user_id: str, item_ids: Sequence[str]) -> frozenset[str]:
        """Return those of the items that the user has acted on."""


class Ranker(Protocol):
    """Scores items."""

    async def score(self, user_key: int, item_keys_N: npt.NDArray[np.int64], features_block: bytes, deadline_s: float) -> Scores:
        """Return one row per item. Raises RankerUnavailable."""


class Catalog(Protocol):
    """What is known about items."""

    @property
    def is_ready(self) -> bool:
        """Whether the whole catalogue has been read once."""

    def categories(self, item_id: str) -> Sequence[str]:
        """Return an item's categories; empty when it is unknown."""

    def categories_of(self, item_ids: Sequence[str]) -> Sequence[Sequence[str]]:
        """Return `categories` of each."""

    def part(self, item_ids: Sequence[str]) -> Part:
        """Return what the declared features make of each item's attributes alone."""

    def newest(self) -> Sequence[str]:
        """Return the ids of the newest items, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallLimits:
    """How far recall goes."""

    per_channel: int
    total: int
    seeds: int


class Recommender:
    """Answers queries."""

    def __init__(
        self,
        *,
        spec: FeatureSpec,
        rules: Rules,
        limits: RecallLimits,
        features: FeatureStore,
        ranker: Ranker,
        catalog: Catalog,
        channels: Sequence[RecallChannel],
    ) -> None:
        """`channels` take turns in their order when items are recalled."""
        self._spec, self._rules, self._limits = spec, rules, limits
        self._features, self._ranker, self._catalog, self._channels = features, ranker, catalog, channels

    async def recommend(self, query: Query) -> Answer:
        """Rank the query's candidates, or recall items and rank those.

        Whatever is missing is named in `degraded`; an answer always comes.

        Raises:
            InvalidQuery: an attribute of the request has another type than the feature spec reads; names it.
        """
        self._check_types(query)
        degraded: list[str] = [] if self._catalog.is_ready else [CATALOG_UNAVAILABLE]
        reasons: Mapping[str, Sequence[str]] = {}
        item_ids: Sequence[str] = query.candidates
        if not query.candidates:
            reasons = await self._recall(query.user_id, degraded)
            item_ids = list(reasons)
        elif self._rules.exclude_any:
            item_ids = [item_id for item_id in query.candidates if self._allows(item_id)]
        if not item_ids:
            return Answer(items=NO_ITEMS, version=None, degraded=tuple(degraded), features_block=b"")
        categories = self._catalog.categories_of(item_ids)
        state = await self._online_state(query, item_ids, degraded)
        declared = self._declared(query, state, item_ids, degraded)
        features = build_features(self._spec, query.user_id, state.user, state.items, categories, state.total, declared)
        block = exposure_block.encode(features, self._spec.schema_hash)
        scored = await self._score(query, state.item_keys_N, block, degraded)
        rank_N = popularity(state.items) if scored is None else self._spec.blended(scored.scores_NT)
        order_K = np.argsort(-rank_N, kind="stable")
        if not query.candidates:
            order_K = np.asarray(diversified(order_K.tolist(), categories, self._rules), dtype=np.int64)
        order_K = order_K[: query.limit]
        logged, is_new_K = b"", np.zeros(len(order_K), dtype=np.bool_)
        if FEATURES_UNAVAILABLE not in degraded:
            logged = exposure_block.encode(features.only(order_K), self._spec.schema_hash)
            is_new_K = state.items.tally_N3[order_K, 0] == 0
        chosen = [item_ids[row] for row in order_K.tolist()]
        items = RankedItems(
            item_ids=chosen,
            scores_K=rank_N[order_K].astype(np.float32, copy=False),
            task_scores_KT=np.empty((len(chosen), 0), dtype=np.float32) if scored is None else scored.scores_NT[order_K],
            reasons=_reasons(chosen, is_new_K.tolist(), reasons),
        )
        return Answer(items=items, version=scored, degraded=tuple(degraded), features_block=logged)

    def _check_types(self, query: Query) -> None:
        """Refuse attributes of the request that the features cannot read."""
        for side, called, attributes in (("context", "context", query.context), ("user", "profile", query.profile)):
            for name, what in self._spec.plan.faults(side, attributes).items() if attributes else ():
                raise InvalidQuery(f"{called}.{name}: {what}")

    def _declared(self, query: Query, state: OnlineState, item_ids: Sequence[str], degraded: list[str]) -> Declared | None:
        """Return the declared features' columns; None when the spec has none."""
        plan, profile = self._spec.plan, state.profile
        if not plan.features:
            return None
        unfit = plan.faults("user", profile) if not query.profile else {}
        if unfit:
            degraded.append(PROFILE_UNFIT)
            profile = {name: value for name, value in profile.items() if name not in unfit}
        past = self._past(query, state.user) if plan.sequences else None
        return Declared.of(plan, profile, query.context, self._catalog.part(item_ids), past, item_ids)

    def _past(self, query: Query, user: UserState | None) -> Past:
        """Return the user's latest events, with what the catalogue says of their items now."""
        history = [] if user is None else user.history[: self._spec.plan.longest_sequence]
        items = self._catalog.part([entry.item_id for entry in history])
        return past_of(history, query.now_ms, items, np.arange(len(history), dtype=np.int64))

    def _allows(self, item_id: str) -> bool:
        return self._rules.allows(item_id, self._catalog.categories(item_id))

    async def _online_state(self, query: Query, item_ids: Sequence[str], degraded: list[str]) -> OnlineState:
        """Return the online state; without Redis a neutral one, and say so in `degraded`."""
        if FEATURES_UNAVAILABLE not in degraded:
            try:
                return await self._features.read(query.user_id, item_ids, query.profile)
            except FeaturesUnavailable:
                degraded.append(FEATURES_UNAVAILABLE)
        keys_N = np.asarray([entity_key(item_id) for item_id in item_ids], dtype=np.int64)
        items = merge_item_bytes(self._spec, [[None] * len(item_ids)], [None])
        return OnlineState(None, items, keys_N, GlobalState(), query.profile)

    async def _score(self, query: Query, item_keys_N: npt.NDArray[np.int64], block: bytes, degraded: list[str]) -> Scores | None:
        try:
            return await self._ranker.score(entity_key(query.user_id), item_keys_N, block, query.deadline_s)
        except RankerUnavailable:
            degraded.append(RANKER_UNAVAILABLE)
            return None

    async def _recall(self, user_id: str, degraded: list[str]) -> Mapping[str, list[str]]:
        """Return item id -> reasons of unseen items, from all channels; they are asked side by side."""
        request = await self._recall_request(user_id, degraded)
        asked = await asyncio.gather(*(self._proposed_by(channel, request) for channel in self._channels))
        for _, missing in asked:
            if missing and missing not in degraded:
                degraded.append(missing)
        # Twice the items that are ranked: the user may have seen half of them.
        found = merged([proposals for proposals, _ in asked], limit=2 * self._limits.total, allowed=self._allows)
        seen = await self._seen(user_id, list(found), degraded)
        unseen = [item_id for item_id in found if item_id not in seen][: self._limits.total]
        return {item_id: found[item_id] for item_id in unseen}

    async def _recall_request(self, user_id: str, degraded: list[str]) -> RecallRequest:
        try:
            return RecallRequest(user_id=user_id, user=await self._features.user(user_id), has_features=True)
        except FeaturesUnavailable:
            degraded.append(FEATURES_UNAVAILABLE)
            return RecallRequest(user_id=user_id, user=None, has_features=False)

    async def _proposed_by(self, channel: RecallChannel, request: RecallRequest) -> tuple[Sequence[Proposal], str]:
        """Return the channel's proposals, and the reason when it has none because its source does not answer; other channels go on."""
        try:
            return await channel.propose(request, self._limits.per_channel), ""
        except FeaturesUnavailable:
            return (), FEATURES_UNAVAILABLE
        except Unavailable:
            return (), f"{channel.name}_unavailable"

    async def _seen(self, user_id: str, item_ids: Sequence[str], degraded: list[str]) -> frozenset[str]:
        if FEATURES_UNAVAILABLE not in degraded:
            try:
                return await self._features.seen(user_id, item_ids)
            except FeaturesUnavailable:
                degraded.append(FEATURES_UNAVAILABLE)
        return frozenset()


def popularity(items: ItemMatrix) -> npt.NDArray[np.float64]:
    """Return float64 [N]: recent acts per item, ties broken by all acts. Replaces a ranker that does not answer."""
    recent_N, total_N = items.decayed_NH3[:, 0, 0], items.tally_N3[:, 0]
    return recent_N + 1e-6 * np.log1p(total_N)


def _reasons(item_ids: Sequence[str], are_new: Sequence[bool], recalled: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
    """Return why each item is there: it was recalled for what `recalled` says, or named by the client."""
    if not recalled:
        return [_COLD_CANDIDATE if is_new else _CANDIDATE for is_new in are_new]
    return [_with_cold_start(recalled[item_id], is_new) for item_id, is_new in zip(item_ids, are_new, strict=True)]


def _with_cold_start(reasons: Sequence[str], is_new: bool) -> Sequence[str]:
    return [*reasons, "cold_start"] if is_new and "cold_start" not in reasons else reasons
