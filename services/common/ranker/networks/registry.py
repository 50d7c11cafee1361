"""Which network a feature spec names."""

from __future__ import annotations

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.interface import RankerNetwork


def make_network(spec: FeatureSpec, seed: int = 0) -> RankerNetwork:
    """Return the network of the spec; its weights are a function of spec and seed."""
    return DcnDin(spec, seed)
