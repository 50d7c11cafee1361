"""How a tune stands, as GetTune shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["collecting", "training", "evaluating", "loading", "live", "refused", "failed"]
ENDED: frozenset[Phase] = frozenset({"live", "refused", "failed"})


@dataclass(slots=True)
class TuneStatus:
    """What GetTune shows; changed by the tune, read by anybody on the same event loop."""

    tune_id: str
    task: str
    adapter: str
    phase: Phase = "collecting"
    step: int = 0
    num_steps: int = 0
    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    error: str = ""
    mlflow_run_id: str = ""
