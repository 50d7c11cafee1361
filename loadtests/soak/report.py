"""The verdict of a soak: per service and measure its trend, what is expected to grow, a table, a JSON file and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests.soak.trend import MIN_SAMPLES, Trend, trend_of

MEASURES = ("rss_mib", "fds", "threads", "lag")

# What must grow by its nature; it is shown, but fails no soak.
EXPECTED: Mapping[tuple[str, str], str] = {
    ("tansu", "rss_mib"): "the embedded broker keeps its whole log in memory",
    ("apache-kafka", "rss_mib"): "a Java heap grows up to its -Xmx before it is collected in earnest",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One measure of one service over time; `at_s` are seconds since the load began."""

    service: str
    measure: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one series. `expected` says why growth is no fault; empty otherwise."""

    service: str
    measure: str
    trend: Trend
    expected: str

    @property
    def is_good(self) -> bool:
        """Whether it does not grow, or may."""
        return not self.trend.grows or bool(self.expected)


def tolerance_of(measure: str, values: Sequence[float], *, records_per_s: float) -> float:
    """Return the growth over the whole time that does not count.

    Memory: 3 % and at least 4 MiB (allocators settle); descriptors and threads: 2 (connections come and go); lag: two seconds of records.
    """
    if measure == "rss_mib":
        return max(4.0, 0.03 * sorted(values)[len(values) // 2])
    if measure == "lag":
        return 2.0 * records_per_s
    return 2.0


def judge(all_series: Sequence[Series], *, warm_up_s: float, records_per_s: float) -> list[Verdict]:
    """Return a verdict for each series with enough samples after the warm-up."""
    found = []
    for series in all_series:
        kept = [(at, value) for at, value in zip(series.at_s, series.values, strict=True) if at >= warm_up_s]
        if len(kept) < MIN_SAMPLES:
            continue
        times, values = zip(*kept, strict=True)
        tolerance = tolerance_of(series.measure, values, records_per_s=records_per_s)
        expected = EXPECTED.get((series.service, series.measure), "")
        found.append(Verdict(series.service, series.measure, trend_of(times, values, tolerance=tolerance), expected))
    return found


def write(out: Path, verdicts: Sequence[Verdict], all_series: Sequence[Series], *, warm_up_s: float, about: Mapping[str, Any]) -> None:
    """Write soak.json and soak.png."""
    rows = [asdict(verdict) | {"grows": verdict.trend.grows, "is_good": verdict.is_good} for verdict in verdicts]
    (out / "soak.json").write_text(json.dumps(dict(about) | {"verdicts": rows}, indent=1), encoding="utf-8")
    figure = Figure(figsize=(12, 3.2 * len(MEASURES)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, measure in zip(figure.subplots(len(MEASURES), 1, sharex=True), MEASURES, strict=True):
        for series in all_series:
            if series.measure == measure:
                axes.plot(series.at_s, series.values, label=series.service, linewidth=1.0)
        axes.axvline(warm_up_s, color="grey", linestyle=":")
        axes.set_ylabel(measure)
        axes.set_yscale("symlog" if measure == "lag" else "log")
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("seconds of load; judged right of the dotted line")
    figure.savefig(out / "soak.png", dpi=110)


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print one line a series; what grows is marked."""
    table = Table(title="per hour, with 95 % interval", show_edge=False)
    for column, justify in (("service", "left"), ("measure", "left"), ("median", "right"), ("per hour", "right"), ("verdict", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for verdict in verdicts:
        trend = verdict.trend
        slopes = f"{3600 * trend.slope_per_s:+.1f} [{3600 * trend.low_per_s:+.1f}, {3600 * trend.high_per_s:+.1f}]"
        said = "steady" if not trend.grows else f"grows, as it must: {verdict.expected}" if verdict.expected else "GROWS"
        table.add_row(verdict.service, verdict.measure, f"{trend.median:.1f}", slopes, said)
    console.print(table)
