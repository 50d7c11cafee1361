"""The feature spec's key `learning`: how fast the trainer learns, from files and live. Needs no torch: every process reads the spec.

A rate that is left out has the trainer's default (services.trainer.learner, LearnerConfig, says what each is). None is part of the schema
hash: weights mean the same at whichever rate they were learned, so rates may change under a running model.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class LearningSpec(BaseModel):
    """Rates of the learner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_rate: Rate | None = None
    item_rate: Rate | None = None
    feature_rate: Rate | None = None
    bias_rate: Rate | None = None
    position_rate: Rate | None = None
    dense_rate: Rate | None = None
    init_scale: Rate | None = None
    sequence_init_scale: Rate | None = None
    accumulator_init: Rate | None = None

    def given(self) -> dict[str, float]:
        """Return those that the spec gives, by name."""
        return self.model_dump(exclude_none=True)
