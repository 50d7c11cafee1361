from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from loadtests.movielens import load_film_attributes, load_ratings, load_user_attributes
from services.common.ranker.feature_spec import FeatureSpec

pytestmark = pytest.mark.ml


def test_the_declared_features_know_every_word_of_the_dataset() -> None:
    from loadtests.bench_declared import FEATURES, in_context

    raw = yaml.safe_load(Path("model_repo/ranker/feature_spec.yaml").read_text(encoding="utf-8"))
    spec = FeatureSpec.parse(raw | {"format": 2, "features": list(FEATURES)})
    contexts = [in_context(rating).context for rating in load_ratings()[:500]]
    events = spec.plan.events(list(load_user_attributes().values())[:500], contexts)
    of_user = dict(zip(spec.plan.user_columns, events.numbers.T, strict=True))
    of_item = dict(zip(spec.plan.item_columns, spec.plan.items(list(load_film_attributes().values())).numbers.T, strict=True))
    missing = {name: int(values.sum()) for name, values in (of_user | of_item).items() if name.endswith((".unknown", ".absent"))}
    # Two films have the genre "unknown", and two have no year.
    assert {name: count for name, count in missing.items() if count} == {"genre.unknown": 2, "year.absent": 2}
    # The first 500 ratings are of the night, the afternoon and the evening.
    hours = {tuple(values) for values in np.stack([of_user[f"hour.{bucket}"] for bucket in range(4)], axis=1).tolist()}
    assert hours == {(1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)}
    assert of_item["genre=Drama"].sum() == 725, "of 1,682 films"
