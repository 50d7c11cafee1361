"""How a tune stands, as GetTune shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["collecting", "training", "evaluating", "loading", "live", "refused", "undecided", "failed"]
ENDED: frozenset[Phase] = frozenset({"live", "refused", "undecided", "failed"})


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
    questions_needed: int = 0
    error: str = ""
    mlflow_run_id: str = ""
    is_published: bool = False
    """Whether the adapter is in the store."""
    may_judge_again: bool = False
    """Of phase "failed": the adapter is in the store, and no training can make up for what went wrong: it is judged again."""
