"""The plot of a run: latency percentiles over time, one panel per kind of call, failures marked. Writes a PNG; knows no Locust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtests.load.calls import Call
from loadtests.load.summary import Bucket, timeline

_MAX_BUCKETS = 120
_LABELS = ("p50", "p95", "p99")


def write_plot(calls: Sequence[Call], path: Path, *, title: str) -> None:
    """Draw the run; `calls` must not be empty."""
    kinds = sorted({call.kind for call in calls})
    whole_s = max(call.planned_s for call in calls) - min(call.planned_s for call in calls)
    bucket_s = max(1.0, whole_s / _MAX_BUCKETS)
    figure = Figure(figsize=(11, 2.6 * len(kinds) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        _draw(axes, timeline([call for call in calls if call.kind == kind], bucket_s=bucket_s), kind, bucket_s)
    panels[-1].set_xlabel("seconds since the first call was due")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, buckets: Sequence[Bucket], kind: str, bucket_s: float) -> None:
    for index, label in enumerate(_LABELS):
        points = [(bucket.at_s, bucket.percentiles_ms[index]) for bucket in buckets if bucket.percentiles_ms]
        axes.plot([at for at, _ in points], [ms for _, ms in points], label=label, linewidth=1.2)
    failed = [(bucket.at_s, bucket.failed / bucket_s) for bucket in buckets if bucket.failed]
    if failed:
        rate = axes.twinx()
        rate.bar([at for at, _ in failed], [number for _, number in failed], width=bucket_s, align="edge", color="tab:red", alpha=0.4)
        rate.set_ylabel("failed / s", color="tab:red")
        rate.set_ylim(bottom=0)
    if any(bucket.percentiles_ms for bucket in buckets):  # there is no logarithm of nothing
        axes.set_yscale("log")
    axes.set_ylabel("ms since due")
    axes.set_title(f"{kind}: latency of successes, in pieces of {bucket_s:g} s", fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(loc="upper right", fontsize=8)
