"""The feature spec's key `network`, read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import NETWORK_NAMES, OwnNetworkSpec
from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.learning import SPEC, with_network
from tests.limits import seconds

# What bases, checkpoints and exposures carry that were made with the shipped spec before there was a choice of networks.
RECORDED_HASH = "8537633868ea1a2e"


@pytest.mark.parametrize("network", ["dcn_din", {"name": "dcn_din"}, {}, {"name": "dcn_din", "hidden": [64, 32], "cross_layers": 2}])
def test_the_first_network_keeps_the_hash_that_artifacts_carry(network: object) -> None:
    raw = SPEC.model_dump(mode="json")
    del raw["network"]
    assert FeatureSpec.parse(raw).schema_hash == RECORDED_HASH
    assert with_network(network).schema_hash == RECORDED_HASH == SPEC.schema_hash


def test_every_other_network_and_size_has_a_hash_of_its_own() -> None:
    networks: list[object] = [*NETWORK_NAMES, {"hidden": [64]}, {"name": "mmoe", "experts": 5}, {"name": "mmoe", "hidden": [32, 64]}]
    networks += [{"module": "a.b:C"}, {"module": "a.b:D"}, {"module": "a.b:C", "settings": {"width": 2}}]
    assert len({with_network(network).schema_hash for network in networks}) == len(networks)


def test_a_spec_goes_there_and_back() -> None:
    for network in (*NETWORK_NAMES, {"name": "ple", "levels": 1, "hidden": [8]}, {"module": "a.b:C", "settings": {"deep": [1, None, "x"]}}):
        spec = with_network(network)
        again = FeatureSpec.parse(spec.model_dump(mode="json"))
        assert again.network == spec.network and again.schema_hash == spec.schema_hash
    assert isinstance(with_network({"module": "a.b:C"}).network, OwnNetworkSpec)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("mmoo", r"key network: 'mmoo' is no network; there are dcn_din, .*two_tower, and module: package.file:Class"),
        ({"name": "mmoo"}, r"key network: \{'name': 'mmoo'\} is no network; there are dcn_din"),
        (5, r"key network: 5 is no network; there are dcn_din"),
        ([], r"key network: \[\] is no network; there are dcn_din"),
        ({"name": ["mmoe"]}, r"key network: .* is no network; there are dcn_din"),
        ({"name": "mmoe", "expert": 3}, r"key network: unknown key 'expert'; this network has name, experts, hidden, tower, attention_dim"),
        ({"name": "mmoe", "module": "a:B"}, r"key network: unknown key 'module'; this network has name, experts"),
        ({"name": "mmoe", "experts": 0}, r"key network.experts: .*greater than or equal to 1 \(there: 0\)"),
        ({"name": "mmoe", "hidden": []}, r"key network.hidden: .*at least 1 item"),
        ({"name": "din", "hidden": [4.5]}, r"key network.hidden.0: .*valid integer.*\(there: 4.5\)"),
        ({"name": "din", "hidden": [100_000]}, r"key network.hidden.0: .*less than or equal to 1024 \(there: 100000\)"),
        ({"module": "my_net"}, r"key network.module: .*\(there: 'my_net'\)"),
        ({"module": "../my_net.py:Net"}, r"key network.module: .*\(there: '../my_net.py:Net'\)"),
        ({"module": "a:B", "width": 3}, r"key network: unknown key 'width'; this network has module, settings"),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_what_is_allowed(network: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"feature spec spec.yaml: {said}"):
        FeatureSpec.parse(SPEC.model_dump(mode="json") | {"network": network}, source="spec.yaml")


def test_reading_a_spec_imports_neither_torch_nor_the_module_that_it_names() -> None:
    program = (
        "import sys; from services.common.ranker.feature_spec import FeatureSpec; "
        "spec = FeatureSpec.load('model_repo/ranker/feature_spec.yaml'); "
        "FeatureSpec.parse(spec.model_dump(mode='json') | {'network': {'module': 'this:Network'}}); "
        "assert not {'torch', 'this'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY_ROOT, check=True, timeout=seconds(60))
