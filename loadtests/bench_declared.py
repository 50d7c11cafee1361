"""What declared features add on MovieLens-100K, trained and replayed in one process: python -m loadtests.bench_declared.

The present spec beside the same with age, gender and occupation of users, genres and year of films, and hour and weekday of the request
declared; the same base, live events, candidates, lag and seeds as in loadtests.bench_networks. Both are learned live; the gain is paired by
user. Knows nothing about the mesh.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from loadtests.bench_networks import Data, load
from loadtests.metrics import auc, auc_gain, mean_gain
from loadtests.movielens import ACTIVE_USERS, Rating, load_film_attributes, load_films, load_user_attributes
from loadtests.offline_replay import LIKE_FROM_STARS, OfflineReplay, ReplayConfig, Scores, interaction_of
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import ALWAYS_MS, Versions
from services.trainer.event_files.history import History
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.replay_order import BatchConfig
from services.trainer.train import train

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror",
    "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare", "homemaker", "lawyer",
    "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist", "student", "technician", "writer",
)  # fmt: skip
FEATURES: tuple[dict[str, Any], ...] = (
    {"raw_feature": {"feature_name": "age", "expression": "user:age", "normalizer": "method=zscore,mean=34,standard_deviation=12"}},
    {"id_feature": {"feature_name": "gender", "expression": "user:gender", "vocab_list": ["M", "F"]}},
    {"id_feature": {"feature_name": "occupation", "expression": "user:occupation", "vocab_list": list(OCCUPATIONS)}},
    {"id_feature": {"feature_name": "genre", "expression": "item:genres", "vocab_list": list(GENRES)}},
    {"raw_feature": {"feature_name": "year", "expression": "item:year", "normalizer": "method=minmax,min=1930,max=1998"}},
    {"raw_feature": {"feature_name": "hour", "expression": "context:hour", "boundaries": [6, 12, 18]}},
    {"raw_feature": {"feature_name": "weekday", "expression": "context:weekday", "boundaries": [5]}},
)


def in_context(rating: Rating) -> Interaction:
    """Return a rating with what its request said: hour and weekday, UTC."""
    return replace(interaction_of(rating), context={"hour": rating.time_s // 3600 % 24, "weekday": (rating.time_s // 86400 + 3) % 7})


def scores_of(spec: FeatureSpec, data: Data, seed: int) -> Scores:
    """Train a base, replay the live events and return the scores of the learner that learned them too."""
    users = Versions((user_id, ALWAYS_MS, attributes) for user_id, attributes in load_user_attributes().items())
    items = Versions((item_id, ALWAYS_MS, attributes) for item_id, attributes in load_film_attributes().items())
    films = load_films()
    categories = {film.item_id: film.categories for film in films.values()}
    history = History([in_context(rating) for rating in data.base], categories, user_attributes=users, item_attributes=items)
    trained, states = train(spec, history, BatchConfig(active_users=ACTIVE_USERS, seed=seed), LearnerConfig(seed=seed))
    live, frozen = (Learner(spec, LearnerConfig(seed=seed)) for _ in range(2))
    for learner in (live, frozen):
        learner.load_state_arrays(trained.state_arrays())
    replayed = OfflineReplay(spec, films, live, frozen, states, ReplayConfig(), in_context)
    replayed.has_seen(data.base)
    replayed.run(data.live)
    return replayed.scores["live"]


def compared(plain: Scores, declared: Scores, data: Data, *, rounds: int) -> dict[str, Any]:
    """Return metrics of both, and the gains of `declared` with their intervals."""
    users = [timed.rating.user_id for timed in data.live]
    liked = np.asarray([float(timed.rating.stars >= LIKE_FROM_STARS) for timed in data.live])
    ours, theirs = ({"like": np.asarray(one.like), "ndcg": np.asarray(one.ndcg)} for one in (declared, plain))
    return {
        "like_auc": {"plain": auc(liked, theirs["like"]), "declared": auc(liked, ours["like"])},
        "interact_ndcg10": {"plain": float(theirs["ndcg"].mean()), "declared": float(ours["ndcg"].mean())},
        "gain": {
            "like_auc": asdict(auc_gain(liked, ours["like"], theirs["like"], users, rounds=rounds)),
            "interact_ndcg10": asdict(mean_gain(ours["ndcg"], theirs["ndcg"], users, rounds=rounds)),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; print a line per network and seed, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench_declared", description="What declared features add on MovieLens-100K.")
    parser.add_argument("--spec", type=Path, default=Path("model_repo/ranker/feature_spec.yaml"))
    parser.add_argument("--networks", nargs="+", default=["dcn_din"], help="names, or YAML such as '{name: mmoe, experts: 8}'")
    parser.add_argument("--base-events", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=6_000, help="live events to replay")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=300, help="of the bootstrap")
    parser.add_argument("--out", type=Path, default=Path("build/bench/declared.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    raw, data = yaml.safe_load(options.spec.read_text(encoding="utf-8")), load(options.base_events, options.events)
    results: list[Mapping[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for text in options.networks:
        plain = raw | {"network": yaml.safe_load(text)}
        specs = [FeatureSpec.parse(one, source=str(options.spec)) for one in (plain, plain | {"format": 2, "features": list(FEATURES)})]
        for seed in range(options.seeds):
            plain_scores, declared_scores = (scores_of(spec, data, seed) for spec in specs)
            found = compared(plain_scores, declared_scores, data, rounds=options.rounds)
            results.append({"network": text, "seed": seed} | found)
            options.out.write_text(json.dumps({"base": len(data.base), "live": len(data.live), "runs": results}, indent=2))
            print(json.dumps(results[-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
