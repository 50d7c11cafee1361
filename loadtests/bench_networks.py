"""Compares the ranking networks on MovieLens-100K, each trained and replayed in one process: python -m loadtests.bench_networks.

Every network learns the same base (the latest events of the first 60 %), is replayed over the same live events with the same candidates and
the same lag as in loadtests.offline_replay, and is compared with online counters on those events. It changes nothing but the feature spec's
key `network`, and the seed. Knows nothing about the mesh.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from loadtests.movielens import ACTIVE_USERS, Rating, TimedRating, load_films, load_ratings, overlaid_sessions, split_by_time
from loadtests.offline_replay import BASE_FRACTION, OfflineReplay, ReplayConfig, interaction_of, report
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.network_spec import NETWORK_NAMES
from services.common.ranker.networks.checks import made_up
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import scoring_of
from services.trainer.event_files.history import History
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.replay_order import BatchConfig
from services.trainer.train import train

_SCORED_ITEMS = 100
_SCORED_TIMES = 200


@dataclass(frozen=True, slots=True)
class Data:
    """What every network learns and is asked."""

    base: list[Rating]
    live: list[TimedRating]


def load(base_events: int, events: int) -> Data:
    """Return the last `base_events` of the base and the first `events` of the overlaid live sessions."""
    base, live = split_by_time(load_ratings(), BASE_FRACTION)
    return Data(base[-base_events:], overlaid_sessions(live)[:events])


def bench(spec: FeatureSpec, data: Data, *, seed: int, rounds: int) -> dict[str, Any]:
    """Train, replay and score one network; return its numbers."""
    films, started = load_films(), time.process_time()
    history = History([interaction_of(rating) for rating in data.base], {film.item_id: film.categories for film in films.values()})
    trained, states = train(spec, history, BatchConfig(active_users=ACTIVE_USERS, seed=seed), LearnerConfig(seed=seed))
    base_cpu_s, arrays = time.process_time() - started, trained.state_arrays()
    live, frozen = (Learner(spec, LearnerConfig(seed=seed)) for _ in range(2))
    for learner in (live, frozen):
        learner.load_state_arrays(arrays)
    replayed = OfflineReplay(spec, films, live, frozen, states, ReplayConfig())
    replayed.has_seen(data.base)
    replayed.run(data.live)
    found: dict[str, Any] = report(replayed, data.live, {rating.user_id for rating in data.base}, rounds=rounds)["all"]
    return {
        "network": spec.network.model_dump(mode="json"),
        "seed": seed,
        "weights": sum(value.size for value in live.dense_state().values()),
        "score_100_ms": milliseconds_to_score(spec),
        "base_cpu_s": round(base_cpu_s, 1),
        "learn_cpu_ms_an_event": round(1000 * replayed.learn_cpu_s / max(replayed.num_learned, 1), 3),
    } | found


def milliseconds_to_score(spec: FeatureSpec) -> float:
    """Return the median of the processor time to score 100 items of one user as the ranker does, rows in hand, one thread."""
    scoring, (inputs, rows) = scoring_of(spec, make_network(spec)), made_up(spec, (_SCORED_ITEMS,))
    features = Features(
        user_key=0,
        history_keys_L=inputs.history_keys_GL[0],
        history_values_L=inputs.history_values_GL[0].astype(np.float16),
        user_U=inputs.user_GU[0].astype(np.float16),
        items_NF=inputs.items_BF.astype(np.float16),
    )
    scoring.score(features, rows.user_GD[0].numpy(), rows.item_BD.numpy(), rows.history_GLD[0].numpy())
    taken = []
    for _ in range(_SCORED_TIMES):
        started = time.process_time_ns()
        scoring.score(features, rows.user_GD[0].numpy(), rows.item_BD.numpy(), rows.history_GLD[0].numpy())
        taken.append(time.process_time_ns() - started)
    return round(float(np.median(taken)) / 1e6, 3)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: a row per network, mean, lowest and highest over seeds, and the lowest end of their 95 % intervals over counters."""
    columns = (
        "network",
        "weights",
        "AUC like",
        "over counters",
        "NDCG@10 interact",
        "over counters",
        "100 items, ms",
        "learning, ms an event",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name in dict.fromkeys(json.dumps(result["network"]) for result in results):
        own = [result for result in results if json.dumps(result["network"]) == name]
        auc, ndcg = ([result[metric]["live"] for result in own] for metric in ("like_auc", "interact_ndcg10"))
        gains = [min(result["gain"][gain]["low"] for result in own) for gain in ("like_auc_vs_counters", "interact_ndcg10_vs_counters")]
        speed = [float(np.median([result[key] for result in own])) for key in ("score_100_ms", "learn_cpu_ms_an_event")]
        network = own[0]["network"]
        lines.append(
            f"| {network.get('name', network.get('module'))} | {own[0]['weights']:,} | {_spread(auc)} | {gains[0]:+.3f} "
            f"| {_spread(ndcg)} | {gains[1]:+.3f} | {speed[0]:.2f} | {speed[1]:.2f} |"
        )
    counters = results[0]
    lines.append(
        f"| online counters | – | {counters['like_auc']['counters']:.3f} | – | {counters['interact_ndcg10']['counters']:.3f} | – | – | – |"
    )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; print a line per run and the table, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench_networks", description="Compare the ranking networks on MovieLens-100K."
    )
    parser.add_argument("--spec", type=Path, default=Path("model_repo/ranker/feature_spec.yaml"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORK_NAMES), help="names, or YAML such as '{name: mmoe, experts: 8}'")
    parser.add_argument("--base-events", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=6_000, help="live events to replay")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=300, help="of the bootstrap")
    parser.add_argument("--out", type=Path, default=Path("build/bench/networks.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    raw, data = yaml.safe_load(options.spec.read_text(encoding="utf-8")), load(options.base_events, options.events)
    results: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for text in options.networks:
            spec = FeatureSpec.parse(raw | {"network": yaml.safe_load(text)}, source=str(options.spec))
            results.append(bench(spec, data, seed=seed, rounds=options.rounds))
            options.out.write_text(json.dumps({"base": len(data.base), "live": len(data.live), "runs": results}, indent=2))
            print(f"{text}, seed {seed}: AUC {results[-1]['like_auc']}, NDCG@10 {results[-1]['interact_ndcg10']}", flush=True)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
