"""Which class a feature spec's key `network` names, built in or one's own, and the network itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import OwnNetworkSpec
from services.common.ranker.networks.checks import fault_of
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.deepfm import DeepFm
from services.common.ranker.networks.din import Din
from services.common.ranker.networks.dlrm import Dlrm
from services.common.ranker.networks.interface import RankerNetwork
from services.common.ranker.networks.mmoe import Mmoe
from services.common.ranker.networks.ple import Ple
from services.common.ranker.networks.two_tower import TwoTower

NETWORKS: dict[str, type[RankerNetwork]] = {
    "dcn_din": DcnDin,
    "deepfm": DeepFm,
    "din": Din,
    "dlrm": Dlrm,
    "mmoe": Mmoe,
    "ple": Ple,
    "two_tower": TwoTower,
}


def make_network(spec: FeatureSpec, seed: int = 0) -> RankerNetwork:
    """Return the network of the spec; its weights are a function of spec and seed.

    Raises:
        ConfigurationError: a network of one's own cannot be imported or made, or breaks a rule of the interface. Names file and key.
    """
    if not isinstance(spec.network, OwnNetworkSpec):
        return NETWORKS[spec.network.name](spec, seed)
    named = spec.network.module
    where = f"feature spec {spec.source}: key network.module: {named!r}"
    network_class = _own_class(named, _folder_of(spec), where)
    try:
        network, fault = network_class(spec, seed), fault_of(network_class, spec)
    except Exception as error:  # anything may go wrong in code that somebody else wrote, and all of it is wrong configuration
        raise ConfigurationError(f"{where} cannot be made or tried: {type(error).__name__}: {error}") from error
    if fault:
        raise ConfigurationError(f"{where}: {fault}")
    return network


def _own_class(named: str, folder: Path | None, where: str) -> type[RankerNetwork]:
    module_name, _, class_name = named.partition(":")
    try:
        with _importable(folder):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        looked = f"beside the feature spec ({folder}) and " if folder else ""
        raise ConfigurationError(f"{where}: {error}; it is looked for {looked}among what is installed in {sys.prefix}") from error
    except Exception as error:
        raise ConfigurationError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, RankerNetwork):
        return found
    wanted = f"a subclass of {RankerNetwork.__module__}.{RankerNetwork.__name__}"
    if found is not None:
        raise ConfigurationError(f"{where} is {found!r:.100}; it must be {wanted}")
    classes = sorted(name for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__)
    raise ConfigurationError(
        f"{where}: {module.__file__} has no {class_name}; it has {', '.join(classes) or 'no class'}, wanted is {wanted}"
    )


def _folder_of(spec: FeatureSpec) -> Path | None:
    return Path(spec.source).resolve().parent if Path(spec.source).is_file() else None


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let modules of the folder be found, behind all that is installed: a file there takes no installed module's place."""
    if folder is None or str(folder) in sys.path:
        yield
        return
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
