"""Prints, as JSON, the schema hash and the names of the network's weights. Needs the ml environment."""

import json

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.registry import make_network

spec = FeatureSpec.load("model_repo/ranker/feature_spec.yaml")
print(json.dumps([spec.schema_hash, sorted(make_network(spec).state())]))
