"""The demo's replay in one process, without Kafka and Triton, with the lag of learning as a number: python -m loadtests.offline_replay.

MovieLens-100K: the first 60 % by time make the base, the rest is replayed with overlaid sessions. Every event is scored by the learner
(whose samples arrive late), by a frozen copy of the base with the same live features, and by online counters; a (user, second) block is
scored whole before any of it is learned. The bench on which rates and network were tuned; it knows nothing about the mesh.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, TaskLabel

from loadtests.metrics import FloatArray, Gain, OnlineCounters, auc, auc_gain, mean_gain, ndcg_of_target
from loadtests.movielens import (
    ACTIVE_USERS,
    CandidateDrawer,
    Film,
    Rating,
    TimedRating,
    load_films,
    load_ratings,
    overlaid_sessions,
    split_by_time,
)
from services.common.platform.artifacts import read_artifact
from services.common.platform.ids import sample_id
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import keep_negative, labels_for, negative_labels
from services.common.ranker.states import Interaction
from services.trainer.batch import FeatureStates
from services.trainer.event_files.history import History
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.replay_order import BatchConfig, replay_order
from services.trainer.train import train

BASE_FRACTION = 0.6
LIKE_FROM_STARS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How late things are, in events of the replay."""

    lag_events: int = 300
    """From an act to weights in service that contain it."""
    window_events: int = 200
    """How much later than the positive the unanswered items of an exposure are learned (the joiner's window)."""
    feature_lag_events: int = 30
    """From an act to features in service that contain it."""
    groups_per_step: int = 16
    """Sample groups of one learner step; an event makes two."""
    seed: int = 1
    """Of the candidates."""


@dataclass(frozen=True, slots=True)
class Event:
    """One exposure and what came of it."""

    rating: Rating
    item_ids: list[str]
    block: bytes

    @property
    def target(self) -> int:
        """Row of the rated film."""
        return self.item_ids.index(self.rating.item_id)


@dataclass(slots=True)
class Scores:
    """What one contestant said: of the rated film the like score, of the list NDCG@10 of interact."""

    like: list[float]
    ndcg: list[float]


def interaction_of(rating: Rating) -> Interaction:
    """Return a rating as the reducers see it."""
    return Interaction(rating.user_id, rating.item_id, "rating", rating.stars, rating.time_s * 1000)


def positive_group(spec: FeatureSpec, event: Event) -> SampleGroup:
    """Return what the joiner emits at once."""
    rating = event.rating
    labels = [TaskLabel(task=task, value=value) for task, value in labels_for(spec, "rating", rating.stars)]
    one = sample_id(str(rating.index), rating.item_id, 1)
    sample = Sample(sample_id=one, item_id=rating.item_id, revision=1, labels=labels, keep_rate=1.0)
    return _group(spec, event, [event.target], [sample])


def negative_group(spec: FeatureSpec, event: Event) -> SampleGroup | None:
    """Return what the joiner emits when the window closes; None when no negative was kept."""
    labels = [TaskLabel(task=task, value=value) for task, value in negative_labels(spec)]
    rate = spec.negatives.keep_rate
    rows, samples = [], []
    for row, item_id in enumerate(event.item_ids):
        one = sample_id(str(event.rating.index), item_id, 0)
        if row != event.target and keep_negative(one, rate):
            rows.append(row)
            samples.append(Sample(sample_id=one, item_id=item_id, labels=labels, keep_rate=rate))
    return _group(spec, event, rows, samples) if rows else None


def _group(spec: FeatureSpec, event: Event, rows: Sequence[int], samples: Sequence[Sample]) -> SampleGroup:
    return SampleGroup(
        request_id=str(event.rating.index),
        user_id=event.rating.user_id,
        schema_hash=spec.schema_hash,
        features_block=exposure_block.select(event.block, rows),
        samples=samples,
    )


class OfflineReplay:
    """Replays live ratings against a live and a frozen learner that start equal."""

    def __init__(
        self,
        spec: FeatureSpec,
        films: Mapping[str, Film],
        live: Learner,
        frozen: Learner,
        states: FeatureStates,
        config: ReplayConfig,
        as_shown: Callable[[Rating], Interaction] = interaction_of,
    ) -> None:
        """`states` hold what the base has seen; `as_shown` gives a rating with the context of its request."""
        self._spec, self._config, self._as_shown = spec, config, as_shown
        self._live, self._frozen, self._states = live, frozen, states
        self._drawer = CandidateDrawer(list(films), config.seed)
        self._counters = OnlineCounters()
        self._behind: deque[Interaction] = deque()
        self._events: list[Event] = []
        self._num_learned = 0
        self._pending: list[SampleGroup] = []
        self.scores = {name: Scores([], []) for name in ("live", "frozen", "counters")}
        self.learn_cpu_s = 0.0

    def has_seen(self, ratings: Sequence[Rating]) -> None:
        """Let counters and candidates know the base's ratings."""
        for rating in ratings:
            self._counters.add(rating.user_id, rating.item_id, float(rating.stars >= LIKE_FROM_STARS))
            self._drawer.rated(rating)

    def run(self, timed: Sequence[TimedRating]) -> None:
        """Replay all events, block by block."""
        start = 0
        while start < len(timed):
            end = start + 1
            while end < len(timed) and timed[end].block == timed[start].block:
                end += 1
            self._learn_what_is_due(len(self._events))
            while len(self._behind) > self._config.feature_lag_events:
                self._states.apply(self._behind.popleft())
            block = [timed_rating.rating for timed_rating in timed[start:end]]
            for rating in block:
                self._expose(rating)
            for rating in block:
                self._counters.add(rating.user_id, rating.item_id, float(rating.stars >= LIKE_FROM_STARS))
                self._drawer.rated(rating)
                self._behind.append(interaction_of(rating))
            start = end

    def _expose(self, rating: Rating) -> None:
        item_ids = self._drawer.draw(rating)
        block = exposure_block.encode(self._states.features(rating.user_id, item_ids, self._as_shown(rating)), self._spec.schema_hash)
        event = Event(rating, item_ids, block)
        self._events.append(event)
        interact, like = self._spec.task_names.index("interact"), self._spec.task_names.index("like")
        for name, learner in (("live", self._live), ("frozen", self._frozen)):
            scores_NT = learner.score_block(block, item_ids).astype(np.float64)
            self._note(name, float(scores_NT[event.target, like]), scores_NT[:, interact], event.target)
        self._note("counters", self._counters.like_score(rating.user_id, rating.item_id), self._counters.popularity(item_ids), event.target)

    def _note(self, name: str, like: float, interact_N: FloatArray, target: int) -> None:
        self.scores[name].like.append(like)
        self.scores[name].ndcg.append(ndcg_of_target(interact_N, target))

    def _learn_what_is_due(self, now: int) -> None:
        """Learn positives that are `lag_events` old and negatives that are `window_events` older, in the order of their due times."""
        # Processor time: other processes of a shared machine do not count.
        started = time.process_time()
        while self._num_learned + self._config.lag_events < now:
            self._pending.append(positive_group(self._spec, self._events[self._num_learned]))
            closed = self._num_learned - self._config.window_events
            group = negative_group(self._spec, self._events[closed]) if closed >= 0 else None
            if group is not None:
                self._pending.append(group)
            self._num_learned += 1
            if len(self._pending) >= self._config.groups_per_step:
                self._live.step(self._pending)
                self._pending = []
        self.learn_cpu_s += time.process_time() - started

    @property
    def num_learned(self) -> int:
        """Events whose positive was learned."""
        return self._num_learned


def report(replayed: OfflineReplay, timed: Sequence[TimedRating], known_users: set[str], *, rounds: int) -> dict[str, Any]:
    """Return metrics and paired gains over all events, and over known and new users apart."""
    users = [timed_rating.rating.user_id for timed_rating in timed]
    liked = np.asarray([float(timed_rating.rating.stars >= LIKE_FROM_STARS) for timed_rating in timed])
    known = np.asarray([user in known_users for user in users])
    result = {"all": _compare(replayed.scores, users, liked, np.ones(len(users), dtype=bool), rounds)}
    for name, chosen in (("known_users", known), ("new_users", ~known)):
        if chosen.any():
            result[name] = _compare(replayed.scores, users, liked, chosen, rounds)
    return result


def _compare(
    scores: Mapping[str, Scores], users: Sequence[str], liked: FloatArray, chosen: np.ndarray[Any, np.dtype[np.bool_]], rounds: int
) -> dict[str, Any]:
    some_users = [user for user, is_chosen in zip(users, chosen, strict=True) if is_chosen]
    like = {name: np.asarray(own.like)[chosen] for name, own in scores.items()}
    ndcg = {name: np.asarray(own.ndcg)[chosen] for name, own in scores.items()}
    gains: dict[str, Gain] = {}
    for other in ("frozen", "counters"):
        gains[f"like_auc_vs_{other}"] = auc_gain(liked[chosen], like["live"], like[other], some_users, rounds=rounds)
        gains[f"interact_ndcg10_vs_{other}"] = mean_gain(ndcg["live"], ndcg[other], some_users, rounds=rounds)
    return {
        "events": int(chosen.sum()),
        "like_auc": {name: auc(liked[chosen], values) for name, values in like.items()},
        "interact_ndcg10": {name: float(values.mean()) for name, values in ndcg.items()},
        "gain": {name: asdict(gain) for name, gain in gains.items()},
    }


def _learners(spec: FeatureSpec, history: History, base: str, config: LearnerConfig) -> tuple[Learner, Learner]:
    """Return the base twice: read from a folder, or trained now."""
    if base:
        _, arrays = read_artifact(base, expect_schema_hash=spec.schema_hash, only=lambda name: not name.startswith("features/"))
    else:
        arrays = train(spec, history, BatchConfig(active_users=ACTIVE_USERS), LearnerConfig())[0].state_arrays()
    pair = Learner(spec, config), Learner(spec, config)
    for learner in pair:
        learner.load_state_arrays(arrays)
    return pair


def _states(spec: FeatureSpec, history: History) -> FeatureStates:
    states = FeatureStates(spec, history.categories)
    for placed in replay_order(history.interactions, BatchConfig(active_users=ACTIVE_USERS)):
        states.apply(placed.interaction)
    return states


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and print its report as JSON."""
    defaults = ReplayConfig()
    parser = argparse.ArgumentParser(prog="python -m loadtests.offline_replay", description="Replay MovieLens-100K in one process.")
    parser.add_argument("--spec", type=Path, default=Path("model_repo/ranker/feature_spec.yaml"))
    parser.add_argument("--base", default="", help="folder of a base of the first 60 %%; without it one is trained now")
    parser.add_argument("--events", type=int, default=24_000, help="live events to replay")
    parser.add_argument("--lag-events", type=int, default=defaults.lag_events)
    parser.add_argument("--window-events", type=int, default=defaults.window_events)
    parser.add_argument("--feature-lag-events", type=int, default=defaults.feature_lag_events)
    parser.add_argument("--groups-per-step", type=int, default=defaults.groups_per_step)
    parser.add_argument("--rounds", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=VALUE", help="a field of LearnerConfig for live learning")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    spec = FeatureSpec.load(options.spec)
    rates: dict[str, Any] = {name: float(value) for name, value in (rate.split("=") for rate in options.rate)}
    films = load_films()
    base, live = split_by_time(load_ratings(), BASE_FRACTION)
    history = History([interaction_of(rating) for rating in base], {film.item_id: film.categories for film in films.values()})
    learner, frozen = _learners(spec, history, options.base, replace(LearnerConfig(), **rates))
    config = ReplayConfig(
        lag_events=options.lag_events,
        window_events=options.window_events,
        feature_lag_events=options.feature_lag_events,
        groups_per_step=options.groups_per_step,
    )
    replayed = OfflineReplay(spec, films, learner, frozen, _states(spec, history), config)
    replayed.has_seen(base)
    timed = overlaid_sessions(live)[: options.events]
    started = time.monotonic()
    replayed.run(timed)
    result = report(replayed, timed, {rating.user_id for rating in base}, rounds=options.rounds)
    result["config"] = asdict(config) | rates
    result["seconds"] = {"replay": round(time.monotonic() - started, 1), "learning_cpu": round(replayed.learn_cpu_s, 1)}
    result["learned_events_per_cpu_s"] = round(replayed.num_learned / max(replayed.learn_cpu_s, 1e-9), 1)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
