"""The last part of a history, replayed: each event is scored by everybody before anybody learns it.

Candidates, features, samples and steps are those of services.trainer.batch. A (user, second) block is scored whole before any of it is
learned or counted. The live learner learns every event, in steps like those of training; a frozen one sees the same features and stays as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.ids import sample_id
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import BatchLearner, FeatureStates
from services.trainer.event_samples import group_of, kept_negatives, shown_beside
from services.trainer.held_out.counters import Counters
from services.trainer.held_out.scored import FROZEN, LIVE, Collector
from services.trainer.replay_order import BatchConfig, Behind, ReplayOrder, blocks

Float32Array = npt.NDArray[np.float32]

_PLACES = 1 << 64
MAX_SCORED_EVENTS = 20_000
"""Of more events, those of some users, drawn by hash, are scored: rows of about so many events stay in memory."""


class Scorer(Protocol):
    """The part of services.trainer.learner.Learner that scores."""

    def score_block(self, block: bytes, item_ids: Sequence[str], positions: Sequence[int] | None = None) -> Float32Array:
        """Return float32 [items, tasks]: probabilities of items at these positions."""


class LiveLearner(BatchLearner, Scorer, Protocol):
    """Scores and learns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Where the first part left off.

    Attributes:
        states: which contain all its events.
        counters: which count all its events; None: counting is not compared.
        chosen: what each user has chosen in it.
        num_events: how many there were.
    """

    states: FeatureStates
    counters: Counters | None
    chosen: dict[str, set[str]]
    num_events: int


def begun(spec: FeatureSpec, first_part: Sequence[Interaction], states: FeatureStates, *, is_counted: bool = True) -> Begun:
    """Return where a first part leaves off; `states` contain it already."""
    counters = Counters(spec) if is_counted else None
    chosen: dict[str, set[str]] = {}
    for interaction in first_part:
        if counters is not None:
            counters.add(interaction)
        chosen.setdefault(interaction.user_id, set()).add(interaction.item_id)
    return Begun(states=states, counters=counters, chosen=chosen, num_events=len(first_part))


def score_then_learn(
    spec: FeatureSpec,
    live: LiveLearner,
    frozen: Scorer | None,
    placed: ReplayOrder,
    item_ids: Sequence[str],
    begun: Begun,
    config: BatchConfig,
    collector: Collector,
    max_scored: int = MAX_SCORED_EVENTS,
) -> None:
    """Replay the held-out events; `live`, the states and the counters contain all of them when it returns.

    Args:
        frozen: None: it is not compared.
        placed: see `replay_order.replay_order`.
        item_ids: the catalogue that candidates are drawn from: also what is new, or its first event would give it away.
        collector: takes what was scored.
        max_scored: about so many events are scored; all are learned.
    """
    waiting: list[SampleGroup] = []
    behind = Behind(config)
    index, share = begun.num_events, drawn_share((one.interaction.user_id for one in placed), len(placed), max_scored)
    for block in blocks(placed):
        for known in behind.known_at(block[0].time_ms):
            begun.states.apply(known)
        user_id = block[0].user_id
        mine = begun.chosen.setdefault(user_id, set())
        is_scored = is_drawn(user_id, share)
        for interaction in block:
            rng = np.random.default_rng((config.seed, config.epochs, index))
            others = shown_beside(spec, rng, item_ids, mine | {interaction.item_id})
            request_id = f"base:{config.epochs}:{index}"
            kept = kept_negatives(spec, others, request_id)
            shown = [interaction.item_id, *others]
            if is_scored:
                encoded = exposure_block.encode(begun.states.features(user_id, shown, interaction), spec.schema_hash)
                # Where drawn items would have stood nobody knows: all are compared as if they were shown first.
                stood = [interaction.position] if spec.reads_impressions else None
                scores = {LIVE: live.score_block(encoded, shown, stood)}
                if frozen is not None:
                    scores[FROZEN] = frozen.score_block(encoded, shown, stood)
                if begun.counters is not None:
                    scores |= begun.counters.scores(user_id, shown, len(item_ids))
                collector.add(interaction, scores)
                encoded = exposure_block.select(encoded, [0, *(row + 1 for row in kept)])
            else:
                learned = [interaction.item_id, *(others[row] for row in kept)]
                encoded = exposure_block.encode(begun.states.features(user_id, learned, interaction), spec.schema_hash)
            group = group_of(spec, interaction, others, kept, encoded, request_id=request_id)
            if group.samples:
                waiting.append(group)
            index += 1
        if len(waiting) >= config.events_per_step:
            live.step(waiting)
            waiting = []
        if begun.counters is not None:
            for interaction in block:
                begun.counters.add(interaction)
        mine.update(interaction.item_id for interaction in block)
        behind.add(block)
    if waiting:
        live.step(waiting)
    for interaction in behind.rest():
        begun.states.apply(interaction)


def drawn_share(user_ids: Iterable[str], num_events: int, max_scored: int) -> float:
    """Return the share of the users whose events are scored, such that it is about so many events, and that it is one user at least.

    Args:
        user_ids: of the events, or of the users; looked at where not all are scored.
        num_events: how many events there are.
        max_scored: how many of them are to be scored.
    """
    if num_events <= max_scored:
        return 1.0
    least = float(min(map(_place, set(user_ids))))
    return max(max_scored / num_events, math.nextafter(least, math.inf) / _PLACES)


def is_drawn(user_id: str, share: float) -> bool:
    """Say whether a user is among about `share` of all, whose events are scored; a function of the id alone."""
    return _place(user_id) < share * _PLACES


def _place(user_id: str) -> int:
    return sample_id("held-out", user_id, 0)
