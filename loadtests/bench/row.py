"""What a row of the bench is: numbers of this checkout and of its peer, taken in turn in one run. Knows no row."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEAST_REPEATS = 5


class NotHere(Exception):
    """A row cannot be measured on this machine as it is; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run was started with.

    Attributes:
        against: another checkout of the project with its own environments, for the rows that compare with it.
        repeats: of each side, at least LEAST_REPEATS.
    """

    against: Path | None = None
    repeats: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One number of a row, of both sides.

    Attributes:
        name: of the file under build/bench.
        unit: of `ours` and `peer`.
        ours, peer: one value a repeat, in the order in which they were taken; `peer` is empty where the number stands for itself.
        more_is_better: says which way round the ratio is; 2 means twice as good as the peer either way.
    """

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; None without one."""
        if not self.peer:
            return None
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return ours / peer if self.more_is_better else peer / ours

    def written(self) -> str:
        """Return the JSON of the file: medians, their ratio, the unit and the number of repeats."""
        peer = statistics.median(self.peer) if self.peer else None
        row = {"name": self.name, "ours": statistics.median(self.ours), "peer": peer, "ratio": self.ratio, "unit": self.unit}
        return json.dumps(row | {"n": len(self.ours)}, indent=2) + "\n"

    def line(self) -> str:
        """Return a row of the Markdown table: medians with their spread."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.name} | {_spread(self.ours)} | {_spread(self.peer)} | {ratio} | {self.unit} | {len(self.ours)} |"


TABLE_HEAD = ("| name | ours, median (min to max) | peer | times better | unit | repeats |", "|---|---:|---:|---:|---|---:|")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.3f} ({min(values):,.3f} to {max(values):,.3f})" if values else ""


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured together.

    Attributes:
        what: in one line.
        names: of the results, so that one may be asked for by name.
        measure: returns them. Raises NotHere.
    """

    what: str
    names: tuple[str, ...]
    measure: Callable[[Options], Sequence[Result]] = field(repr=False)
