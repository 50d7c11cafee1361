"""What a score costs: processor time to score 100 items, from an exposure's block on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import FeatureStates
from services.trainer.learner import Learner

NUM_ITEMS = 100


@dataclass(frozen=True, slots=True)
class Scored:
    """A learner, and blocks of requests under its spec."""

    learner: Learner
    blocks: Sequence[bytes]
    item_ids: Sequence[str]


def requests(spec: FeatureSpec, learner: Learner, states: FeatureStates, events: Sequence[Interaction], item_ids: Sequence[str]) -> Scored:
    """Return the requests of these events, each for the same items, NUM_ITEMS where there are so many."""
    shown = list(item_ids[:NUM_ITEMS])
    blocks = [exposure_block.encode(states.features(event.user_id, shown, event), spec.schema_hash) for event in events]
    return Scored(learner, blocks, shown)


def costs_ms(scored: Mapping[str, Scored], *, rounds: int = 5, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Return by name the median time of a request, milliseconds; the learners take turns, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in scored}
    for _ in range(rounds):
        for name, one in scored.items():
            for block in one.blocks:
                began = clock()
                one.learner.score_block(block, one.item_ids)
                times[name].append((clock() - began) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}
