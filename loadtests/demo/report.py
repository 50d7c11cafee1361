"""The demo's results: report.json, the summary table and the plot. Takes outcomes; knows nothing of the mesh."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from loadtests.demo.replay import LIKE_STARS, Outcome
from loadtests.metrics import Gain, auc, auc_gain, mean_gain

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrozenScore:
    """What the frozen copy of base 1 gave the same event, from the same logged features."""

    like: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Events that every competitor scored, side by side, in the order in which they were scored. All arrays are [events]."""

    users: list[str]
    known: npt.NDArray[np.bool_]
    liked: FloatArray
    at_s: FloatArray
    like: dict[str, FloatArray]  # live, frozen, means
    ndcg: dict[str, FloatArray]  # live, frozen, popularity

    def subset(self, rows: npt.NDArray[np.bool_]) -> Scored:
        """Return only the events where `rows` is true."""
        return Scored(
            [user for user, keep in zip(self.users, rows, strict=True) if keep],
            self.known[rows],
            self.liked[rows],
            self.at_s[rows],
            {name: values[rows] for name, values in self.like.items()},
            {name: values[rows] for name, values in self.ndcg.items()},
        )


def side_by_side(outcomes: Sequence[Outcome], frozen: Mapping[str, FrozenScore], known_users: set[str]) -> Scored:
    """Line up the events that all competitors scored; degraded answers are left out (the report counts them)."""
    rows = [(o, frozen[o.request_id]) for o in outcomes if o.live_like is not None and o.request_id in frozen]
    return Scored(
        users=[o.user_id for o, _ in rows],
        known=np.array([o.user_id in known_users for o, _ in rows], bool),
        liked=np.array([float(o.stars >= LIKE_STARS) for o, _ in rows]),
        at_s=np.array([o.at_s for o, _ in rows]),
        like={
            "live": np.array([o.live_like for o, _ in rows], float),
            "frozen": np.array([f.like for _, f in rows]),
            "means": np.array([o.means for o, _ in rows]),
        },
        ndcg={
            "live": np.array([o.live_ndcg for o, _ in rows], float),
            "frozen": np.array([f.ndcg for _, f in rows]),
            "popularity": np.array([o.popularity_ndcg for o, _ in rows]),
        },
    )


def quality(scored: Scored, *, rounds: int = 1000) -> dict[str, Any]:
    """Return AUC of like, NDCG@10 of interact, and live's gains with paired bootstrap intervals by user."""
    like, ndcg = scored.like, scored.ndcg
    return {
        "events": len(scored.users),
        "users": len(set(scored.users)),
        "like_auc": {name: auc(scored.liked, scores) for name, scores in like.items()},
        "interact_ndcg10": {name: float(values.mean()) for name, values in ndcg.items()},
        "gain": {
            "like_auc": {
                "vs_frozen": _gain(auc_gain(scored.liked, like["live"], like["frozen"], scored.users, rounds=rounds)),
                "vs_counters": _gain(auc_gain(scored.liked, like["live"], like["means"], scored.users, rounds=rounds)),
            },
            "interact_ndcg10": {
                "vs_frozen": _gain(mean_gain(ndcg["live"], ndcg["frozen"], scored.users, rounds=rounds)),
                "vs_counters": _gain(mean_gain(ndcg["live"], ndcg["popularity"], scored.users, rounds=rounds)),
            },
        },
    }


def _gain(gain: Gain) -> dict[str, float]:
    return {"mean": gain.mean, "low": gain.low, "high": gain.high}


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50 and p95, or None for both when there is nothing."""
    if not values:
        return {"p50": None, "p95": None}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write the report; numbers that do not exist (no such events) are null, never NaN."""
    path.write_text(json.dumps(_without_nan(report), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def print_summary(report: Mapping[str, Any], console: Console) -> None:
    """Print the closing tables."""
    table = Table(title="Scored before anyone trained on it")
    for column in ("users", "events", "like AUC live / frozen / means", "interact NDCG@10 live / frozen / popularity"):
        table.add_column(column)
    for name in ("all", "known", "new"):
        part = report if name == "all" else report["by_user_kind"][name]
        if part is None:
            continue
        table.add_row(name, f"{part['events']:,}", _slashed(part["like_auc"]), _slashed(part["interact_ndcg10"]))
    console.print(table)
    gains = Table(title="What learning live gains (paired bootstrap by user, 95 %)")
    for column in ("metric", "against", "gain", "interval"):
        gains.add_column(column)
    for metric, against in report["gain"].items():
        for opponent, gain in against.items():
            gains.add_row(metric, opponent, f"{gain['mean']:+.4f}", f"[{gain['low']:+.4f}, {gain['high']:+.4f}]")
    console.print(gains)
    learned = report["event_to_learned_s"]
    seconds = " / ".join("-" if learned[p] is None else f"{learned[p]:.2f}" for p in ("p50", "p95"))
    console.print(
        f"{report['events_replayed']:,} events, {report['failed_rpcs']} failed RPCs, event→learned p50 / p95 {seconds} s "
        f"({learned['probes']} probes, {learned['missed']} missed), model {report['model_version']}"
    )
    account = report["accounting"]
    console.print(
        f"feedback: {account['acknowledged']:,} acknowledged = {account['in_samples']:,} in samples + {account['in_dlq']} dead letters "
        f"+ {account['orphans']} orphans + {account['missing']} missing"
    )


def print_llm_summary(part: Mapping[str, Any], console: Console, *, shown: int = 6) -> None:
    """Print what the language model answered before and after."""
    table = Table(title="Held-out paraphrases, before and after the tune")
    for column in ("question", "before", "after"):
        table.add_column(column, overflow="fold", ratio=1)
    step = max(1, len(part["examples"]) // shown)
    for example in part["examples"][::step][:shown]:
        table.add_row(example["question"], example["before"], example["after"])
    console.print(table)
    before, after, metrics = part["before"], part["after"], part["tune"]["metrics"]
    console.print(f"held-out paraphrases: {before['held_out']:.2f} right before, {after['held_out']:.2f} after", highlight=False)
    base, candidate = metrics["context.base"], metrics["context.candidate"]
    console.print(f"answers from given context (by the gate): {base:.2f} right before, {candidate:.2f} after", highlight=False)
    back = part["rollback_s"]
    console.print(f"{part['tune']['adapter']}: rollback {back['back']:.2f} s, {part['failed_rpcs']} failed RPCs", highlight=False)


def _slashed(values: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.4f}" for value in values.values())


def plot(scored: Scored, learned_s: Sequence[float], path: Path, *, window: int = 2000) -> None:
    """Draw like AUC and NDCG@10 of everyone over time, and the distribution of event -> learned."""
    matplotlib.use("Agg")
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 11), constrained_layout=True)
    window = max(50, min(window, len(scored.users) // 4))
    ends = np.arange(window, len(scored.users) + 1, max(1, window // 8))
    minutes = (scored.at_s[ends - 1] - scored.at_s[0]) / 60 if len(ends) else np.array([])
    for name, scores in scored.like.items():
        top.plot(minutes, [auc(scored.liked[e - window : e], scores[e - window : e]) for e in ends], label=name)
    top.set(title=f"AUC of like, sliding window of {window} events", ylabel="AUC")
    for name, values in scored.ndcg.items():
        middle.plot(minutes, [values[e - window : e].mean() for e in ends], label=name)
    middle.set(title="NDCG@10 of interact (1 rated film among 100)", ylabel="NDCG@10", xlabel="minutes of replay")
    for axis in (top, middle):
        axis.legend()
        axis.grid(alpha=0.3)
    if learned_s:
        bottom.hist(learned_s, bins=40)
    bottom.set(title="event → learned at the serving replica", xlabel="seconds", ylabel="probed events")
    figure.savefig(path, dpi=110)
    plt.close(figure)
