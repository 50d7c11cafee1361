"""Batch training from recorded events: the same reducers, labels, blocks and learner steps as the stream, only faster.

Every event becomes an exposure: of the item that was chosen and others that the user had not chosen yet, or, where the spec reads
impressions, of the one item that was seen. Its features are built from the states as a service would have had them then, and the resulting
sample group goes through `Learner.step`. A pass is one replay of the
stream: no event is learned before it has been predicted from the past alone, and user rows are as fresh as they are in service, so the
network learns how far to trust rows that are learned live. Knows nothing about Kafka, Redis (but for the keys of packed states) or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.events.feedback_kinds import IMPRESSION
from services.common.ranker import exposure_block, feature_records
from services.common.ranker.feature_records import BASE_PARTIAL
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, Features, build_features
from services.common.ranker.recall_state import (
    CO_OCCURRENCE_DEPTH,
    MAX_NEIGHBOURS,
    MAX_POPULAR,
    Neighbours,
    Popularity,
    pack_ids,
    pack_popular,
)
from services.common.ranker.states import NO_OFFSET, GlobalState, Interaction, ItemState, UserState, merge_item_bytes
from services.trainer.attribute_history import AttributeHistory
from services.trainer.event_samples import group_of, kept_negatives, shown_beside
from services.trainer.replay_order import BatchConfig, Behind, Placed, blocks


class FeatureStates:
    """All online states of one history, in memory: what the stream app keeps in Redis, as the one partial of the base."""

    def __init__(self, spec: FeatureSpec, categories: Mapping[str, Sequence[str]], attributes: AttributeHistory | None = None) -> None:
        """Empty.

        Args:
            spec: the spec.
            categories: the catalogue's, by item id; items may be missing.
            attributes: what was known when, for declared features; None: no attribute is.
        """
        self._spec, self._attributes = spec, attributes
        self._categories = categories
        self._global = GlobalState()
        self._users: dict[str, UserState] = {}
        self._items: dict[str, ItemState] = {}
        self._item_bytes: dict[str, bytes] = {}
        self._seen: dict[str, dict[str, None]] = {}
        self._popularity = Popularity(spec.counters.half_lives_events[0])
        self._neighbours: dict[str, Neighbours] = {}

    def apply(self, interaction: Interaction) -> None:
        """Take one act in; an impression is none, and changes nothing."""
        if interaction.kind == IMPRESSION.name:
            return
        spec, user_id, item_id = self._spec, interaction.user_id, interaction.item_id
        categories = self._categories.get(item_id, ())
        user = self._users.setdefault(user_id, UserState())
        self._note_neighbours(item_id, [entry.item_id for entry in user.history[:CO_OCCURRENCE_DEPTH]])
        user.apply(spec, interaction, categories, NO_OFFSET)
        self._global.apply(spec, interaction, categories, NO_OFFSET)
        item = self._items.setdefault(item_id, ItemState())
        item.apply(spec, interaction, self._global.clock, NO_OFFSET)
        self._item_bytes[item_id] = item.to_bytes(spec)
        self._popularity.add(item_id, self._global.clock)
        self._seen.setdefault(user_id, {})[item_id] = None

    def _note_neighbours(self, item_id: str, earlier: Sequence[str]) -> None:
        for other in dict.fromkeys(earlier):
            if other != item_id:
                self._neighbours.setdefault(item_id, Neighbours(MAX_NEIGHBOURS)).add(other)
                self._neighbours.setdefault(other, Neighbours(MAX_NEIGHBOURS)).add(item_id)

    def features(self, user_id: str, item_ids: Sequence[str], shown: Interaction | None = None) -> Features:
        """Return the features of a request made now.

        Args:
            user_id: who asks.
            item_ids: the candidates.
            shown: whose time and context the request has, for declared features; None: of these no attribute is known.
        """
        packed_N = [self._item_bytes.get(item_id) for item_id in item_ids]
        user = self._users.get(user_id)
        return build_features(
            self._spec,
            user_id,
            user,
            merge_item_bytes(self._spec, [packed_N], [self._global]),
            [self._categories.get(item_id, ()) for item_id in item_ids],
            self._global,
            self._declared(shown, item_ids, user),
        )

    def _declared(self, shown: Interaction | None, item_ids: Sequence[str], user: UserState | None) -> Declared | None:
        if self._attributes is not None and shown is not None:
            return self._attributes.declared(shown, item_ids, [] if user is None else user.history)
        if self._spec.plan.sequences:
            raise ValueError(f"the sequence {self._spec.plan.sequences[0].name!r} needs attributes, and the time of the request")
        return None

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Return all states as (Redis key, packed value), with the keys of services.common.ranker.feature_records."""
        for user_id, user in self._users.items():
            yield feature_records.user_key(user_id), user.to_bytes()
            yield feature_records.seen_key(user_id), pack_ids(self._seen[user_id])
        for item_id, packed in self._item_bytes.items():
            yield feature_records.item_key(item_id, BASE_PARTIAL), packed
        for item_id, near in self._neighbours.items():
            yield feature_records.neighbours_key(item_id, BASE_PARTIAL), near.to_bytes()
        yield feature_records.global_key(BASE_PARTIAL), self._global.to_bytes()
        top = self._popularity.top(self._global.clock, MAX_POPULAR)
        yield feature_records.popular_key(BASE_PARTIAL), pack_popular(self._popularity.half_life_events, top)


class BatchLearner(Protocol):
    """The part of services.trainer.learner.Learner that batch training uses."""

    def step(self, groups: Sequence[SampleGroup]) -> Any:
        """Learn one micro-batch; returns StepStats."""

    def forget_users(self) -> None:
        """Empty the user table."""


@dataclass(slots=True)
class EpochStats:
    """How far a pass is, and its losses, each taken before the sample was learned."""

    num_events: int = 0
    loss_by_task: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def replay(
    spec: FeatureSpec,
    placed: Iterable[Placed],
    item_ids: Sequence[str],
    states: FeatureStates,
    config: BatchConfig,
    epoch: int,
    *,
    first: int = 0,
    chosen: dict[str, set[str]] | None = None,
    skip: int = 0,
) -> Iterator[SampleGroup]:
    """Yield one sample group per event, in order; `states` contain every event when the iterator ends.

    The group of an impression that is not kept has no samples.

    Args:
        item_ids: the catalogue that candidates are drawn from.
        first: number of the first event; what is drawn for an event depends on its number.
        chosen: what each user has chosen before; it is added to.
        skip: so many events are only taken into the states, as if their groups had been yielded.
    """
    chosen = {} if chosen is None else chosen
    behind = Behind(config)
    start, skip = first, first + skip
    for block in blocks(placed):
        for interaction in behind.known_at(block[0].time_ms):
            states.apply(interaction)
        mine = chosen.setdefault(block[0].user_id, set())
        for index, interaction in enumerate(block, start):
            if index < skip:
                continue
            rng = np.random.default_rng((config.seed, epoch, index))
            others = shown_beside(spec, rng, item_ids, mine | {interaction.item_id})
            yield sample_group(spec, states, interaction, others, request_id=f"base:{epoch}:{index}")
        mine.update(interaction.item_id for interaction in block)
        behind.add(block)
        start += len(block)
    for interaction in behind.rest():
        states.apply(interaction)


def sample_group(
    spec: FeatureSpec, states: FeatureStates, interaction: Interaction, others: Sequence[str], *, request_id: str
) -> SampleGroup:
    """Return what the joiner would make of an exposure of `others` and the chosen item: one positive and the kept negatives.

    Of an impression it makes one negative, or none.
    """
    kept = kept_negatives(spec, others, request_id)
    found = states.features(interaction.user_id, [interaction.item_id, *(others[row] for row in kept)], interaction)
    return group_of(spec, interaction, others, kept, exposure_block.encode(found, spec.schema_hash), request_id=request_id)


def train_epoch(
    spec: FeatureSpec,
    learner: BatchLearner,
    placed: Iterable[Placed],
    categories: Mapping[str, Sequence[str]],
    config: BatchConfig,
    epoch: int,
    item_ids: Sequence[str] | None = None,
    *,
    attributes: AttributeHistory | None = None,
    begun: EpochStats | None = None,
    after_step: Callable[[EpochStats], None] = lambda _: None,
) -> tuple[FeatureStates, EpochStats]:
    """Replay all events once and learn from them; return the states at the end and the losses.

    Args:
        placed: see `replay_order`.
        categories: of the items, by id.
        item_ids: the catalogue that candidates are drawn from; None: all items that have categories.
        attributes: what was known when, for declared features.
        begun: how far the learner is already in this pass, as `after_step` was told; None: it begins.
        after_step: called when a step was learned.
    """
    states = FeatureStates(spec, categories, attributes)
    stats = EpochStats(0, np.zeros(len(spec.tasks))) if begun is None else begun
    if epoch > 0 and begun is None:
        learner.forget_users()
    catalogue = list(categories) if item_ids is None else item_ids
    waiting: list[SampleGroup] = []
    for group in replay(spec, placed, catalogue, states, config, epoch, skip=stats.num_events):
        waiting.append(group)
        if len(waiting) == config.events_per_step:
            _learn(learner, waiting, stats)
            waiting = []
            after_step(stats)
    if waiting:
        _learn(learner, waiting, stats)
        after_step(stats)
    return states, stats


def _learn(learner: BatchLearner, groups: Sequence[SampleGroup], stats: EpochStats) -> None:
    if kept := [group for group in groups if group.samples]:
        stats.loss_by_task += learner.step(kept).loss_by_task
    stats.num_events += len(groups)
