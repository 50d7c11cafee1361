"""Prints, as JSON, the schema hash and the item columns by name of two items: one with four acts, and one without."""

import json

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, Interaction, ItemState, UserState, merge_globals, merge_item_bytes

spec = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
total, item = GlobalState(), ItemState()
for offset, kind in enumerate(["rating", "click", "click", "rating"]):
    act = Interaction("u", "i", kind, 4.0, offset)
    total.apply(spec, act, ["Drama"], offset)
    item.apply(spec, act, total.clock, offset)
merged = merge_item_bytes(spec, [[item.to_bytes(spec), None]], [total])
features = build_features(spec, "u", UserState(), merged, [["Drama"], []], merge_globals([total]))
print(json.dumps([spec.schema_hash, dict(zip(spec.item_columns, features.items_NF.T.tolist(), strict=True))]))
