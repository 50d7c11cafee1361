"""Damaged feature specs and damaged attributes, handed to the spec's reader and to the plan that it compiles to."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker.declared.plan import Plan
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, past_of
from services.common.ranker.states import HistoryEntry
from tests.fuzzing import Damage

_SHIPPED = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text(encoding="utf-8"))
_FEATURES: list[dict[str, Any]] = [
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome", "東京", 5], "default_value": "Rome"}},
    {"raw_feature": {"feature_name": "price", "expression": "item:price", "clip": [0, 100], "normalizer": "method=log10,threshold=0.1"}},
    {"raw_feature": {"feature_name": "picture", "expression": "item:picture", "raw_input_dim": 3}},
    {"combo_feature": {"feature_name": "both", "expression": ["feature:city", "item:tags"], "hash_bucket_size": 7, "pooling": "mean"}},
    {"lookup_feature": {"feature_name": "taste", "map": "user:likes", "key": "item:tags", "combiner": "mean"}},
    {"match_feature": {"feature_name": "brand", "nested_map": "user:bought", "pkey": "item:tags", "skey": "ALL", "boundaries": [0, 1]}},
    {"overlap_feature": {"feature_name": "hit", "query": "context:words", "title": "feature:title", "method": "is_contain"}},
    {
        "expr_feature": {
            "feature_name": "afford",
            "expression": "log1p(price) / (budget + 1)",
            "variables": ["feature:price", "context:budget"],
        }
    },
    {"tokenize_feature": {"feature_name": "title", "expression": "item:title", "num_buckets": 9, "max_length": 5}},
    {
        "sequence_feature": {
            "sequence_name": "latest",
            "sequence_length": 5,
            "features": [
                {"raw_feature": {"feature_name": "age", "expression": "sequence:age", "boundaries": [60, 3600], "embedding_dim": 4}},
                {"id_feature": {"feature_name": "tag", "expression": "item:tags", "embedding_dim": 8}},
            ],
        }
    },
]
_ROWS: dict[str, dict[str, Any]] = {
    "user": {"city": "Rome", "likes": ["a:1", "b:2.5"], "bought": ["a^x:1,y:2"]},
    "item": {"price": 3.5, "picture": [1, 2, 3], "tags": ["a", "b"], "title": "Two cities"},
    "context": {"words": ["two"], "budget": 7},
}


def fuzz_specs(count: int, *, seed: int) -> Counter[str]:
    """Read `count` damaged specs; each is refused in one line that names the file, or its plan runs."""
    damage, outcomes = Damage(seed), Counter[str]()
    for _ in range(count):
        # A part of the list may read features that it lacks; the whole is a sound one.
        some = damage.random.sample(_FEATURES, damage.random.randint(1, 4))
        features = damage.of_json(_FEATURES if damage.random.random() < 0.8 else some)
        try:
            spec = FeatureSpec.parse(copy.deepcopy(_SHIPPED) | {"format": 2, "features": features}, source="team.yaml")
        except ConfigurationError as error:
            assert "\n" not in str(error) and str(error).startswith("feature spec team.yaml: key "), str(error)
            assert len(str(error)) < 2_000
            outcomes["refused"] += 1
        else:
            _run(spec.plan, _ROWS)
            outcomes["read"] += 1
    return outcomes


def fuzz_attributes(count: int, *, seed: int) -> Counter[str]:
    """Hand `count` damaged rows to a plan: what has another type is named, and without that every number is finite."""
    damage, outcomes = Damage(seed), Counter[str]()
    plan = FeatureSpec.parse(_SHIPPED | {"format": 2, "features": _FEATURES}).plan
    for _ in range(count):
        rows = damage.of_json(_ROWS)
        rows = {side: row if isinstance(row := rows.get(side), dict) else {} for side in _ROWS} if isinstance(rows, dict) else {**_ROWS}
        unfit = {side: plan.faults(side, row) for side, row in rows.items()}
        outcomes["unfit" if any(unfit.values()) else "fit"] += 1
        _run(plan, {side: {name: value for name, value in row.items() if name not in unfit[side]} for side, row in rows.items()})
    return outcomes


def _run(plan: Plan, rows: dict[str, dict[str, Any]]) -> None:
    fit = {side: {name: value for name, value in row.items() if name not in plan.faults(side, row)} for side, row in rows.items()}
    items = plan.items([fit["item"], {}])
    past = past_of([HistoryEntry("b", 0.5, 1_000), HistoryEntry("gone", 1.0)], 62_000, items, np.asarray([1, 0]))
    made = Declared.of(plan, fit["user"], fit["context"], items, past, ["a", "b"])
    assert np.isfinite(made.user_U).all() and np.isfinite(made.items_NF).all()
    assert made.user_U.shape == (len(plan.user_columns),) and made.items_NF.shape == (2, len(plan.item_columns))
