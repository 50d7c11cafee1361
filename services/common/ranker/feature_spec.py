"""The feature spec: one YAML file that defines tables, feedback kinds, counters, tasks, the network and how tasks blend into a score.

Everything that must agree between the stream, the trainer and the ranker is derived from it and from the table of columns;
`schema_hash` says whether two processes do agree. Knows nothing about where features are stored or how the network looks inside.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from services.common.events.feedback_kinds import IMPRESSION, ITEM_KINDS
from services.common.platform.errors import ConfigurationError
from services.common.ranker import columns
from services.common.ranker.declared import bounds
from services.common.ranker.declared.entries import TableKeys
from services.common.ranker.declared.entry_list import FeatureOne, feature_of
from services.common.ranker.declared.graph import BadFeatures
from services.common.ranker.declared.plan import Plan
from services.common.ranker.learning_spec import LearningSpec
from services.common.ranker.network_spec import DcnDinSpec, NetworkSpec
from services.common.ranker.spec_parts import (
    AdmissionSpec,
    CounterSpec,
    EvictionSpec,
    HistorySpec,
    KindSpec,
    Name,
    NegativesSpec,
    PositionBiasSpec,
    SpecPart,
    Tables,
    TableSpec,
    TaskSpec,
)

# Raise it when a column or a network of the same name, or the exposure block's layout, changes its meaning: old artifacts are then refused.
# A column that is added, removed, renamed or moved needs nothing: the names of all columns enter the hash.
FEATURE_CODE_VERSION = 1
# What an exposure block counts in one byte.
MAX_COLUMNS = 255
# Of the list `features`.
MAX_FEATURES = 1_000

Float32Array = npt.NDArray[np.float32]


class FeatureSpec(SpecPart):
    """A whole feature spec. Build it with `FeatureSpec.load`."""

    format: Literal[1, 2]
    """2 has `features`; a file of format 1 means what it meant."""
    model: Name
    tables: Tables
    history: HistorySpec = HistorySpec()
    kinds: dict[Name, KindSpec] = Field(min_length=1)
    counters: CounterSpec = CounterSpec()
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    negatives: NegativesSpec = NegativesSpec()
    position_bias: PositionBiasSpec | None = None
    """None: where an item stood in an answer is not looked at."""
    blend: dict[str, float] = Field(min_length=1)
    network: NetworkSpec = DcnDinSpec()
    learning: LearningSpec = LearningSpec()
    features: tuple[FeatureOne, ...] = Field(default=(), max_length=MAX_FEATURES)
    """Features that the team declares, beside the counters: services/common/ranker/declared/README.md."""
    _source: str = PrivateAttr("<memory>")

    @classmethod
    def load(cls, path: str | Path) -> FeatureSpec:
        """Read and check a YAML file.

        Raises:
            ConfigurationError: the file is missing, is not YAML or breaks a rule; names the file and the key.
        """
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"feature spec {path}: cannot be read ({error.strerror})") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"feature spec {path}: not YAML: {' '.join(str(error).split())}") from error
        return cls.parse(raw, source=str(path))

    @classmethod
    def parse(cls, raw: object, *, source: str = "<memory>") -> FeatureSpec:
        """Check an already parsed document; see `load`."""
        try:
            spec = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in _without_tag(first["loc"])) or "(top)"
            raise ConfigurationError(f"feature spec {source}: key {key}: {first['msg']}{_what_is_there(first['input'])}") from error
        spec._source = source
        return spec

    @model_validator(mode="after")
    def _names_agree(self) -> FeatureSpec:
        names = self.task_names
        if len(set(names)) != len(names):
            raise ValueError("tasks: two tasks have the same name")
        for kind in sorted(self.kinds.keys() & ITEM_KINDS.keys()):
            raise ValueError(f"kinds.{kind}: every mesh knows this kind, and it is no act that could teach a label; leave it out")
        for task in self.tasks:
            for kind in task.labels:
                if kind not in self.kinds:
                    raise ValueError(f"tasks.{task.name}.labels: kind {kind!r} is not in kinds")
        for name, power in self.blend.items():
            if name not in names:
                raise ValueError(f"blend: {name!r} is not a task")
            if power < 0:
                raise ValueError(f"blend.{name}: must not be negative")
        if self.tables.user.dim != self.tables.item.dim:
            raise ValueError("tables: user.dim and item.dim must be equal (their dot product drives recall)")
        if self.tables.user.dim < self.num_reserved_dims + 2:
            raise ValueError(f"tables: dim must be at least {self.num_reserved_dims + 2} with {len(names)} tasks (one bias each)")
        self._check_features()
        for side, columns_of_it in (("user", self.user_columns), ("item", self.item_columns)):
            if len(columns_of_it) > MAX_COLUMNS:
                what = "counters and features: they" if self.features else "counters: they"
                raise ValueError(f"{what} make {len(columns_of_it)} {side} columns; an exposure block holds {MAX_COLUMNS} a side")
        return self

    def _check_features(self) -> None:
        """Refuse features that do not fit together, or that no network takes."""
        if self.features and self.format == 1:
            raise ValueError("features: these are of format 2; write format: 2")
        try:
            plan = self.plan
            bounds.check(plan, history_length=self.history.length)
        except BadFeatures as error:
            raise ValueError(str(error)) from error
        for side, built_in in (("user", columns.user_names()), ("item", columns.item_names(self.counters.half_lives_events))):
            taken = sorted(set(built_in) & set(plan.user_columns if side == "user" else plan.item_columns))
            if taken:
                raise ValueError(
                    f"features: the {side} column {taken[0]!r} is there already, of the counters; give the feature another name"
                )

    @property
    def source(self) -> str:
        """The file that it was read from, or "<memory>"."""
        return self._source

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks in the order of the network's heads."""
        return tuple(task.name for task in self.tasks)

    @cached_property
    def all_tables(self) -> dict[str, TableSpec]:
        """The embedding tables by name: "user", "item", and those of declared features."""
        return {"user": self.tables.user, "item": self.tables.item} | {name: _table_of(keys) for name, keys in self.plan.tables.items()}

    @property
    def table_dims(self) -> dict[str, int]:
        """Floats per row by table name."""
        return {name: table.dim for name, table in self.all_tables.items()}

    @property
    def reads_impressions(self) -> bool:
        """Whether unanswered items are negatives only where feedback, or a row of a file, says that they were seen."""
        return self.negatives.source == "impressions"

    @property
    def reads_positions(self) -> bool:
        """Whether rows of files of events say where an item stood. Of items that are drawn nobody knows where they would have stood."""
        return self.reads_impressions and self.position_bias is not None

    @property
    def kinds_of_rows(self) -> tuple[str, ...]:
        """What the rows of files of events may be: acts, and impressions where they are read; sorted."""
        return tuple(sorted([*self.kinds, *([IMPRESSION.name] if self.reads_impressions else [])]))

    def draws_negatives(self, task: TaskSpec) -> bool:
        """Say whether files of acts lack the negatives of a task, so that batch training draws items that were not chosen."""
        return task.unanswered is not None and not self.reads_impressions

    @property
    def num_reserved_dims(self) -> int:
        """Leading dimensions of every row that are per-task biases, not part of the dot product."""
        return len(self.tasks)

    @property
    def num_content_dims(self) -> int:
        """Dimensions of a row behind the reserved ones: what the dot product and the network see."""
        return self.tables.item.dim - self.num_reserved_dims

    @cached_property
    def user_columns(self) -> tuple[str, ...]:
        """Names of the columns of Features.user_U: the counters', then the declared features'."""
        return (*columns.user_names(), *self.plan.user_columns)

    @cached_property
    def item_columns(self) -> tuple[str, ...]:
        """Names of the columns of Features.items_NF: the counters', then the declared features'."""
        return (*columns.item_names(self.counters.half_lives_events), *self.plan.item_columns)

    @cached_property
    def user_inputs(self) -> tuple[str, ...]:
        """Names of the user's numbers that the network takes: the columns, then the pooled rows of keyed features."""
        return (*self.user_columns, *(name for one in self.plan.user_keyed for name in one.columns))

    @cached_property
    def item_inputs(self) -> tuple[str, ...]:
        """The same of an item's, and what the network makes of each sequence before a candidate."""
        of_sequences = (name for one in self.plan.sequences for name in one.columns)
        return (*self.item_columns, *(name for one in self.plan.item_keyed for name in one.columns), *of_sequences)

    @cached_property
    def plan(self) -> Plan:
        """What the declared features compile to; without any, a plan that makes no column.

        Raises:
            BadFeatures: they do not fit together. A spec that was parsed has a plan.
        """
        return Plan([feature_of(one) for one in self.features], {*self.task_names, *self.kinds})

    @cached_property
    def schema_hash(self) -> str:
        """16 hex digits; equal iff rows, feature blocks and heads of two processes mean the same.

        Admission, eviction, negatives, position bias, blend and learning may change under the same hash: no stored number means another.
        """
        return hashlib.sha256(self.meaning.encode()).hexdigest()[:16]

    @cached_property
    def meaning(self) -> str:
        """What `schema_hash` is a hash of: JSON of [FEATURE_CODE_VERSION, the spec without what may change, user inputs, item inputs]."""
        # Artifacts made before there was a choice of networks carry a hash without the key.
        without = {"negatives", "position_bias", "blend", "learning"} | ({"network"} if self.network == DcnDinSpec() else set())
        meaning = self.model_dump(mode="json", exclude=without | {"features"})
        for table in meaning["tables"].values():
            del table["admission"], table["eviction"]
        if self.format > 1:
            meaning["features"] = [_meaning_of(one) for one in self.features]
        return json.dumps([FEATURE_CODE_VERSION, meaning, self.user_inputs, self.item_inputs], sort_keys=True, separators=(",", ":"))

    def normalised(self, kind: str, value: float) -> float | None:
        """Return `value` on the kind's scale as 0..1 (clamped), or None when the kind states no opinion or is unknown.

        Whoever takes events in asks `labels.value_fault` first, so nothing outside the range is learned. It is clamped all the same: no
        caller may carry a state beyond the scale.
        """
        known = self.kinds.get(kind)
        if known is None or known.value_range is None:
            return None
        lowest, highest = known.value_range
        return min(1.0, max(0.0, (value - lowest) / (highest - lowest)))

    def blended(self, probabilities_NT: Float32Array) -> Float32Array:
        """Return float32 [N]: the rank score of every item from its task probabilities, float32 [N, T]."""
        powers_T = np.asarray([self.blend.get(name, 0.0) for name in self.task_names], dtype=np.float32)
        clipped_NT = np.clip(probabilities_NT, 1e-9, 1.0)
        return np.exp(np.log(clipped_NT) @ powers_T).astype(np.float32)


def _table_of(keys: TableKeys) -> TableSpec:
    """Return what features say of their table as the spec says it of others."""
    return TableSpec(
        dim=keys.embedding_dim,
        admission=AdmissionSpec(min_count=keys.filter_freq or 1, max_element_size=keys.max_element_size),
        eviction=EvictionSpec(steps_to_live=keys.steps_to_live, l2_weight_threshold=keys.l2_weight_threshold, max_rows=keys.max_rows),
    )


def _meaning_of(one: BaseModel) -> dict[str, Any]:
    """Return an entry of `features` as the schema hash sees it: what it says, without what may change of its table.

    Keys that it leaves out are left out here, so that a key that features get one day alters no hash of today.
    """
    dumped = one.model_dump(mode="json", exclude_defaults=True)
    for feature in dumped.values():
        parts = (part for entry in feature.get("features", ()) for part in entry.values())
        for keys in (feature, *parts):
            for key in TableKeys._fields[1:]:
                keys.pop(key, None)
    return dumped


def _without_tag(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return a key's path as it stands in the file: pydantic puts the network's name behind `network`, and names a feature's kind twice."""
    if loc[:1] == ("network",):
        return (loc[0], *loc[2:])
    return tuple(part for at, part in enumerate(loc) if at == 0 or not isinstance(part, str) or part != loc[at - 1])


def _what_is_there(value: object) -> str:
    """Return a value that broke a rule as the end of a sentence; nothing of a whole mapping or list, which the key names."""
    return f" (there: {value!r:.100})" if isinstance(value, str | int | float | bool) else ""
