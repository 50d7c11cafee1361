"""What is searched: keys of the feature spec, each with the values that it may take. From a YAML file, or a space that any spec has. Pure.

    tables.user.dim: {int: [8, 64], log: true, also: [tables.item.dim]}
    learning.dense_rate: {float: [0.0003, 0.01], log: true}
    network: {choice: [dcn_din, deepfm, mmoe]}
    network.hidden: {choice: [[32], [64, 32]]}

A key of a network (`network.hidden`) counts in those trials whose network has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.network_spec import SIZES, OwnNetworkSpec
from services.trainer.learner import LearnerConfig
from services.trainer.search.documents import ABSENT, Document, value_at, with_values

MAX_PARAMETERS = 100
MAX_CHOICES = 100
SEARCHED = ("tables", "history", "counters", "network", "learning", "features")
"""Parts of a spec whose keys may be searched. The others say what is learned and measured: trials could not be compared."""
_NETWORK = "network"
_HIDDEN = ([32], [64, 32], [128, 64])
_DIMS = (8, 16, 32, 64)
_NETWORKS = ("dcn_din", "deepfm", "din", "dlrm", "mmoe", "ple")
_RATES = {"learning.dense_rate": (3e-4, 1e-2), "learning.user_rate": (0.02, 0.5), "learning.item_rate": (0.01, 0.3)}


class Parameter(BaseModel):
    """The values of one key: exactly one of `int`, `float` and `choice`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ints: tuple[int, int] | None = Field(default=None, alias="int")
    """[lowest, highest], both taken."""
    floats: tuple[float, float] | None = Field(default=None, alias="float")
    choice: Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    log: bool = False
    """Whether ratios count and not differences."""
    step: int | None = Field(default=None, ge=1)
    """Of `int`: only every so many."""
    also: tuple[str, ...] = ()
    """Keys that get the same value."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Parameter:
        if sum(given is not None for given in (self.ints, self.floats, self.choice)) != 1:
            raise ValueError("give exactly one of int: [lowest, highest], float: [lowest, highest] and choice: [value, …]")
        limits = self.ints or self.floats
        if limits is not None and not limits[0] < limits[1]:
            raise ValueError(f"[{limits[0]}, {limits[1]}]: the lowest must be below the highest")
        if limits is None and (self.log or self.step is not None):
            raise ValueError("log and step are of int and float, not of choice")
        if limits is not None and self.log and limits[0] <= 0:
            raise ValueError(f"[{limits[0]}, {limits[1]}]: with log the lowest must be above 0")
        if self.step is not None and (self.ints is None or self.log):
            raise ValueError("step is of int without log")
        return self

    def ends(self) -> Sequence[Any]:
        """Return the values that are tried against the spec's rules beforehand: all choices, or both ends."""
        return self.choice if self.choice is not None else tuple(self.ints or self.floats or ())

    def holds(self, value: Any) -> bool:
        """Say whether it can take a value."""
        if self.choice is not None:
            return value in self.choice
        low, high = self.ints or self.floats or (0, 0)
        is_number = isinstance(value, int if self.ints else (int, float)) and not isinstance(value, bool)
        return is_number and low <= value <= high and (self.step is None or (value - low) % self.step == 0)


_SPACE = TypeAdapter(Annotated[dict[str, Parameter], Field(min_length=1, max_length=MAX_PARAMETERS)])


@dataclass(frozen=True, slots=True)
class Space:
    """Parameters by key, and the spec that they change.

    Attributes:
        parameters: `network` is the first, if it is there.
        document: the spec as its file has it.
        start: the spec.
        source: for messages.
    """

    parameters: Mapping[str, Parameter]
    document: Document
    start: FeatureSpec
    source: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as what stands in the files: a spec that was used holds functions, which do not travel."""
        return _as_in_files, (dict(self.parameters), self.document, self.start.source, self.source)

    def applies(self, key: str, values: Mapping[str, Any]) -> bool:
        """Say whether a key counts beside the values chosen so far: those of a network, where that network has them."""
        part, _, size = key.partition(".")
        if part != _NETWORK or not size or size.startswith("settings"):
            return True
        network = values.get(_NETWORK, self.start.network.model_dump(mode="json"))
        name = network if isinstance(network, str) else network.get("name", "")
        return size.partition(".")[0] in SIZES.get(name, ())

    def spec(self, values: Mapping[str, Any]) -> FeatureSpec:
        """Return the spec with these values.

        Raises:
            ConfigurationError: it breaks a rule of the spec.
        """
        return FeatureSpec.parse(self.changed(values), source=self.start.source)

    def changed(self, values: Mapping[str, Any]) -> Document:
        """Return the document of the spec with these values."""
        whole = {each: value for key, value in values.items() for each in (key, *self.parameters[key].also)}
        if whole.get(_NETWORK) == getattr(self.start.network, "name", ABSENT):
            # The network that the spec has keeps its sizes.
            del whole[_NETWORK]
        return with_values(self.document, whole)

    def start_values(self) -> dict[str, Any] | None:
        """Return the values of the spec that the search starts from; None where the space does not hold them."""
        dumped = self.start.model_dump(mode="json")
        dumped["learning"] = {name: getattr(LearnerConfig.of(self.start), name) for name in dumped["learning"]}
        found: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            if not self.applies(key, found):
                continue
            stands = {repr(value_at(dumped, each)) for each in (key, *parameter.also)}
            value = value_at(dumped, key)
            if key == _NETWORK and not parameter.holds(value) and isinstance(value, dict):
                value = value.get("name")
            if len(stands) > 1 or not parameter.holds(value):
                return None
            found[key] = value
        return found


def _as_in_files(parameters: Mapping[str, Parameter], document: Document, spec_source: str, source: str) -> Space:
    return Space(parameters, document, FeatureSpec.parse(document, source=spec_source), source)


def load_space(path: str | Path | None, document: Document, start: FeatureSpec) -> Space:
    """Return the space of a file, or without one that which any spec has.

    Raises:
        ConfigurationError: the file cannot be read, or a key or a value is none that this spec could have; names file, key and value.
    """
    if path is None:
        return _checked(Space(default_parameters(start), document, start, "the default space"))
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"space {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"space {path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        parameters = _SPACE.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        given = f" (there: {first['input']!r:.100})"
        raise ConfigurationError(f"space {path}: key {key}: {first['msg'].removeprefix('Value error, ')}{given}") from error
    ordered = {key: parameters[key] for key in sorted(parameters, key=lambda key: key != _NETWORK)}
    return _checked(Space(ordered, document, start, f"space {path}"))


def default_parameters(start: FeatureSpec) -> dict[str, Parameter]:
    """Return what is searched where nobody says: the network and its layers, the rates, the length of rows."""
    found: dict[str, Parameter] = {}
    if not isinstance(start.network, OwnNetworkSpec):
        found[_NETWORK] = Parameter(choice=tuple(dict.fromkeys((start.network.name, *_NETWORKS))))
        own = value_at(start.model_dump(mode="json"), "network.hidden")
        found["network.hidden"] = Parameter(choice=tuple(_unique([*([] if own is ABSENT else [own]), *_HIDDEN])))
    least = start.num_reserved_dims + 2
    dims = sorted({dim for dim in _DIMS if dim >= least} | {start.tables.user.dim})
    found["tables.user.dim"] = Parameter(choice=tuple(dims), also=("tables.item.dim",))
    for key, (low, high) in _RATES.items():
        own_rate = getattr(LearnerConfig.of(start), key.partition(".")[2])
        found[key] = Parameter.model_validate({"float": [min(low, own_rate), max(high, own_rate)], "log": True})
    if start.plan.tables:
        found["learning.feature_rate"] = Parameter.model_validate({"float": [0.02, 1.0], "log": True})
    return found


def _checked(space: Space) -> Space:
    """Refuse keys and values that no trial could learn with, before the events are read."""
    for key, parameter in space.parameters.items():
        for each in (key, *parameter.also):
            if each.partition(".")[0] not in SEARCHED:
                raise ConfigurationError(
                    f"{space.source}: key {each}: cannot be searched: it says what is learned and measured, so that trials could not be "
                    f"compared; allowed are keys inside {', '.join(SEARCHED)}"
                )
        for value in parameter.ends():
            _check_value(space, key, value)
    return space


def _check_value(space: Space, key: str, value: Any) -> None:
    values = {key: value}
    if not space.applies(key, {}):
        networks = space.parameters.get(_NETWORK)
        fitting = [one for one in (networks.choice or () if networks else ()) if space.applies(key, {_NETWORK: one})]
        if not fitting:
            raise ConfigurationError(f"{space.source}: key {key}: no network that is searched has it")
        values = {_NETWORK: fitting[0], key: value}
    try:
        spec = space.spec(values)
    except KeyError:
        names = ", ".join(name for one in space.document.get("features", []) for name in [next(iter(one.values()))["feature_name"]])
        raise ConfigurationError(f"{space.source}: key {key}: the spec has no such feature; it has {names or 'none'}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{space.source}: key {key}: value {value!r:.100}: {error}") from error
    if set(spec.plan.wanted) != set(space.start.plan.wanted):
        raise ConfigurationError(f"{space.source}: key {key}: value {value!r:.100}: reads other columns than {space.start.source}")


def _unique(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]
