"""A network of one's own, named in the feature spec: the page that says how to write one, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from services.common.platform.artifacts import read_artifact
from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.networks.checks import made_up
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import score
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.trainer.learner import Learner
from services.trainer.train import main as train
from tests.learning import SPEC, interactions

pytestmark = pytest.mark.ml

PAGE = REPOSITORY_ROOT / "services" / "common" / "ranker" / "networks" / "README.md"
MAX_LINES = 40

HEAD = """
import torch
from torch import nn
from services.common.ranker.networks.dense import Dense
from services.common.ranker.networks.interface import RankerNetwork
"""
GOOD = f"""{HEAD}
class Net(RankerNetwork):
    def build(self, spec):
        self.out = Dense(self.num_content, self.num_tasks)

    def deep(self, samples):
        return self.out(samples.item_BC)
"""


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path) -> Iterator[None]:
    """Each test has files of its own under the same module names."""
    yield
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in repr(module)]:
        del sys.modules[name]


def spec_file(folder: Path, network: object, **files: str) -> Path:
    """Write a feature spec and modules beside it."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC.model_dump(mode="json") | {"network": network}))
    return path


def page() -> tuple[str, dict[str, object]]:
    """Return the module and the key of the feature spec that the page shows."""
    text = PAGE.read_text()
    [module] = re.findall(r"^`my_net.py`:\n\n```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    [key] = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return module, yaml.safe_load(key)["network"]


def test_the_network_of_the_page_is_trained_into_a_base_and_scores_from_it(tmp_path: Path) -> None:
    module, network = page()
    assert len(module.splitlines()) <= MAX_LINES
    path, data = spec_file(tmp_path, network, my_net=module), tmp_path / "events.csv"
    rows = [f"{one.user_id},{one.item_id},rating,{one.value},{one.time_ms // 1000}" for one in interactions(120)]
    data.write_text("\n".join(["user_id,item_id,kind,value,time", *rows]) + "\n")
    assert train(["--data", str(data), "--spec", str(path), "--out", str(tmp_path / "base"), "--time-unit", "s"]) == 0
    spec = FeatureSpec.load(path)
    _, arrays = read_artifact(tmp_path / "base", expect_schema_hash=spec.schema_hash)
    dense = {name.removeprefix("dense/"): value for name, value in arrays.items() if name.startswith("dense/")}
    assert dense["towers.0.mlp.layers.0.weight"].shape[0] == 48, "the settings of the spec reach it"
    served = make_network(spec).eval()
    untrained = served.state()
    served.load(dense)
    assert any(not np.array_equal(untrained[name], dense[name]) for name in dense)
    assert np.isfinite(score(served, *made_up(spec, (20,)))).all()
    with pytest.raises(CorruptArtifact, match="schema"):
        read_artifact(tmp_path / "base", expect_schema_hash=SPEC.schema_hash)


def test_it_keeps_what_it_learned_when_columns_are_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, network = page()
    spec_file(tmp_path, network, my_net=module)
    raw = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    before = FeatureSpec.load(tmp_path / "spec.yaml")
    after = FeatureSpec.parse(raw | {"counters": {"half_lives_events": [50, 500, 5000]}}, source=before.source)
    state = Learner(before).state_arrays()
    Learner(after).load_state_arrays(state)
    assert "begin at zero; none is gone" in caplog.text


def test_without_names_of_inputs_other_columns_are_refused_by_the_weights_name(tmp_path: Path) -> None:
    unnamed = GOOD.replace("Dense(self.num_content,", "nn.Linear(self.num_content,")
    before = FeatureSpec.load(spec_file(tmp_path, {"module": "plain:Net"}, plain=unnamed))
    state = Learner(before).state_arrays()
    Learner(before).load_state_arrays(state)
    after = FeatureSpec.parse(before.model_dump(mode="json") | {"counters": {"half_lives_events": [50, 500]}}, source=before.source)
    with pytest.raises(ConfigurationError, match=r"does not say which columns out.weight, out.bias take .*train a base"):
        Learner(after).load_state_arrays(state)


def test_a_package_beside_the_spec_is_found_and_takes_no_installed_modules_place(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(GOOD)
    (tmp_path / "yaml.py").write_text("raise RuntimeError('shadowed')")
    path = list(sys.path)
    network = make_network(FeatureSpec.load(spec_file(tmp_path, {"module": "nets.mine:Net"})))
    assert type(network).__name__ == "Net" and sys.path == path


OUT = "self.out = Dense(self.num_content, self.num_tasks)"


def body(build: str = OUT, deep: str = "self.out(samples.item_BC)") -> str:
    """The good network with another line in each method."""
    return GOOD.replace(OUT, build).replace("self.out(samples.item_BC)", deep)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("", r"has no Net; it has no class, wanted is a subclass of .*RankerNetwork"),
        ("class Other: pass", r"has no Net; it has Other"),
        ("Net = 5", r"is 5; it must be a subclass of"),
        ("class Net: pass", r"is <class .*Net'>; it must be a subclass of"),
        ("import nowhere", r"No module named 'nowhere'"),
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero"),
        ("class", r"cannot be imported: SyntaxError"),
        (body(build="spec.no_such"), r"cannot be made or tried: AttributeError: .*no_such"),
        (body(deep="samples.no_such"), r"cannot be made or tried: AttributeError: .*no_such"),
        (body(deep="self.out(samples.item_BC)[:, :1]"), r"deep must return float32 \[samples, tasks\]: of 7 samples"),
        (body(deep="self.out(samples.item_BC).double()"), r"it returns torch.float64 \(7, 2\), not float32 \(7, 2\)"),
        (
            body(deep="nn.functional.dropout(self.out(samples.item_BC), training=self.training)"),
            r"other logits .*no randomness \(dropout\)",
        ),
        (body(deep="self.out(samples.item_BC - samples.item_BC.mean(dim=0))"), r"a group scores otherwise beside others"),
        (body(deep="self.out(samples.item_BC / samples.mask_GL.sum())"), r"not finite for 1 samples with an empty history|beside others"),
        (body(build=f"{OUT}; self.more = Dense(3, 3)"), r"more.weight, more.bias: deep does not use it"),
        (body(build=f"{OUT}; self.norm = nn.BatchNorm1d(3)"), r"norm.num_batches_tracked.*every weight must be a parameter"),
        (
            body(build=f"{OUT}; self.more = nn.Parameter(torch.randn(2))", deep="self.out(samples.item_BC) + self.more"),
            r"more: two networks",
        ),
        (body(build=f"{OUT}; self.out.double()"), r"out.weight, out.bias: every parameter must be float32"),
        (
            GOOD + "    def forward(self, inputs, rows):\n        return self.deep(self.samples(inputs, rows))\n",
            r"forward and state are the",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_with_file_key_and_fault(tmp_path: Path, module: str, said: str) -> None:
    spec = FeatureSpec.load(spec_file(tmp_path, {"module": "own:Net"}, own=module))
    with pytest.raises(ConfigurationError, match=rf"(?s)feature spec .*spec.yaml: key network.module: 'own:Net'.*({said})"):
        make_network(spec)


def test_a_module_that_is_nowhere_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    spec = FeatureSpec.load(spec_file(tmp_path, {"module": "no_such:Net"}))
    with pytest.raises(
        ConfigurationError, match=rf"No module named 'no_such'; it is looked for beside the feature spec \({tmp_path}\) and"
    ):
        make_network(spec)
