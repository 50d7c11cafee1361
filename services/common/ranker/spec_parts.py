"""The parts of the feature spec that stand by themselves: tables, history, kinds, counters, tasks, negatives. See `feature_spec`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.common.ranker.half_lives import MAX_HALF_LIVES

# The most occurrences that a cell of the trainer's counting Bloom filter holds.
MAX_BLOOM_COUNT = 255

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class SpecPart(BaseModel):
    """A part of the feature spec: nothing that it does not know, and it does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AdmissionSpec(SpecPart):
    """When an id gets a row of its own; until then it reads the default row, and its occurrences are counted.

    The last two names are DeepRec's and TorchRec's. What they promise is measured in services/trainer/admission.py.
    """

    min_count: int = Field(default=1, ge=1)
    """Occurrences (before de-duplication) from which on an id is admitted."""
    max_waiting: int = Field(default=1 << 18, ge=1)
    """Of exact counting (40 bytes an id): ids counted at once; when there are more, those seen longest ago go first."""
    max_element_size: int | None = Field(default=None, ge=1)
    """Count in a counting Bloom filter for this many ids instead (11 bytes an id at a probability of 1 %): it remembers an id for at
    least so many ids met, and at most for twice as many."""
    false_positive_probability: float = Field(default=0.01, gt=0, lt=1)
    """Of the Bloom filter: largest share of ids that are admitted with fewer occurrences."""

    @model_validator(mode="after")
    def _bloom_counts_so_far(self) -> AdmissionSpec:
        if self.max_element_size is not None and self.min_count > MAX_BLOOM_COUNT:
            raise ValueError(f"a Bloom filter counts to {MAX_BLOOM_COUNT}: leave max_element_size out, or lower min_count {self.min_count}")
        return self


class EvictionSpec(SpecPart):
    """When a row is dropped. Absent limits never drop."""

    steps_to_live: int | None = Field(default=None, ge=1)
    """Learner steps without a touch after which a row goes."""
    l2_weight_threshold: float | None = Field(default=None, gt=0)
    """A row whose L2 norm is below this goes."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows that the table may hold; those that occurred least of late go first, of equal ones the least recently touched."""


class TableSpec(SpecPart):
    """One embedding table."""

    dim: int = Field(ge=4, le=256)
    """Floats per row."""
    admission: AdmissionSpec = AdmissionSpec()
    eviction: EvictionSpec = EvictionSpec()


class HistorySpec(SpecPart):
    """The list of a user's latest items."""

    length: int = Field(default=20, ge=1, le=100)
    """Items kept, newest first."""


class KindSpec(SpecPart):
    """One kind of feedback."""

    value_range: tuple[float, float] | None = None
    """(lowest, highest) of the opinion that the value states; None: the act says nothing but that it happened."""

    @model_validator(mode="after")
    def _range_rises(self) -> KindSpec:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range must be [lowest, highest] with lowest < highest")
        return self


class CounterSpec(SpecPart):
    """The online counters of items, users and the whole stream."""

    half_lives_events: tuple[float, ...] = Field(default=(500.0, 5000.0), min_length=1, max_length=MAX_HALF_LIVES)
    """Half-lives of the decayed counters, in events of the whole stream, shortest first."""
    max_user_categories: int = Field(default=64, ge=1, le=1024)
    """Categories remembered per user; the rarest go first."""

    @model_validator(mode="after")
    def _half_lives_rise(self) -> CounterSpec:
        lives = self.half_lives_events
        if any(not 0 < life < math.inf for life in lives) or list(lives) != sorted(set(lives)):
            raise ValueError("half_lives_events must be positive and rising")
        return self


class LabelThreshold(SpecPart):
    """Label 1 from this value up, else 0."""

    at_least: float


class TaskSpec(SpecPart):
    """One head of the network and what labels it."""

    name: Name
    labels: dict[str, Literal[1] | LabelThreshold] = Field(min_length=1)
    """By feedback kind; kinds that are absent say nothing about this task."""
    unanswered: Literal[0] | None = None
    """Label of an exposed item without feedback; None: it says nothing."""


class NegativesSpec(SpecPart):
    """How unanswered exposures become training samples."""

    keep_rate: float = Field(default=0.16, gt=0, le=1)
    """Probability with which an unanswered item is kept."""
    source: Literal["exposures", "impressions"] = "exposures"
    """Which unanswered items are negatives: all that were returned, or those alone that feedback of kind "impression" says were seen."""


class PositionBiasSpec(SpecPart):
    """That items further behind are answered less is learned apart from what they are; see services/trainer/position_bias.py."""

    places: int = Field(default=20, ge=2, le=1_000)
    """So many are told apart, counted from the first item of an answer; those further behind share the last one's number."""


class Tables(SpecPart):
    """The two embedding tables, by role."""

    user: TableSpec
    item: TableSpec
