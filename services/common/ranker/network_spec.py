"""The feature spec's key `network`: which ranking network scores, and its sizes. Needs no torch: every process reads the spec.

The networks themselves: services.common.ranker.networks. A value that is left out has its default, and names the same network as before.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator
from pydantic_core import PydanticCustomError

Size = Annotated[int, Field(ge=1, le=1024)]
Hidden = Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]
Count = Annotated[int, Field(ge=1, le=32)]


class _Network(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys(cls, raw: Any) -> Any:
        unknown = sorted(str(key) for key in raw if key not in cls.model_fields) if isinstance(raw, dict) else []
        if unknown:
            raise PydanticCustomError("network_key", f"unknown key {unknown[0]!r:.100}; this network has {', '.join(cls.model_fields)}")
        return raw


class DcnDinSpec(_Network):
    """Cross layers (DCNv2) and an MLP per task, over rows, attention over the history (DIN) and features."""

    name: Literal["dcn_din"] = "dcn_din"
    cross_layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Per task; each as wide as all inputs together."""
    hidden: Hidden = (64, 32)
    """Layers of each task's MLP."""
    attention_dim: Size = 16
    """Of the queries and keys of the attention."""


class DeepFmSpec(_Network):
    """A factorisation machine over rows and features beside an MLP per task."""

    name: Literal["deepfm"] = "deepfm"
    hidden: Hidden = (64, 32)
    """Layers of each task's MLP."""


class DinSpec(_Network):
    """Deep interest network: a small network weighs each item of the history against the candidate; an MLP per task."""

    name: Literal["din"] = "din"
    hidden: Hidden = (64, 32)
    """Layers of each task's MLP."""
    unit_hidden: Hidden = (16,)
    """Layers of the network that weighs an item of the history."""


class DlrmSpec(_Network):
    """Features through a bottom MLP to a vector, dot products of all pairs of vectors, a top MLP per task."""

    name: Literal["dlrm"] = "dlrm"
    bottom: Hidden = (32,)
    """Layers of the bottom MLP before the one that is as wide as a row's content."""
    top: Hidden = (64, 32)
    """Layers of each task's top MLP."""


class MmoeSpec(_Network):
    """Experts that all tasks share, mixed by a gate per task, over the inputs of dcn_din."""

    name: Literal["mmoe"] = "mmoe"
    experts: Count = 4
    hidden: Hidden = (64, 32)
    """Layers of each expert."""
    tower: Hidden = (16,)
    """Layers of each task on top of its mixture."""
    attention_dim: Size = 16
    """Of the queries and keys of the attention."""


class PleSpec(_Network):
    """Progressive layered extraction: experts of each task's own beside shared ones, in levels, over the inputs of dcn_din."""

    name: Literal["ple"] = "ple"
    levels: Annotated[int, Field(ge=1, le=4)] = 2
    task_experts: Count = 2
    """Of each task's own, in every level."""
    shared_experts: Count = 2
    """In every level."""
    hidden: Hidden = (32,)
    """Layers of each expert."""
    tower: Hidden = (16,)
    """Layers of each task on top of the last level."""
    attention_dim: Size = 16
    """Of the queries and keys of the attention."""


class TwoTowerSpec(_Network):
    """The dot product of user and item, and what an MLP per side adds: nothing crosses the sides but the dot product."""

    name: Literal["two_tower"] = "two_tower"
    hidden: Hidden = (32,)
    """Layers of each side's MLP."""


class OwnNetworkSpec(_Network):
    """A network of one's own: services/common/ranker/networks/README.md."""

    module: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """`package.file:Class`, beside the feature spec file or installed where trainer and ranker run."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """What the class reads as `spec.network.settings`. Part of the schema hash: change one when the meaning of a weight changes."""


_NAMED: tuple[type[_Network], ...] = (DcnDinSpec, DeepFmSpec, DinSpec, DlrmSpec, MmoeSpec, PleSpec, TwoTowerSpec)
_OWN = "module"

NETWORK_NAMES: tuple[str, ...] = tuple(get_args(network.model_fields["name"].annotation)[0] for network in _NAMED)

SIZES: dict[str, tuple[str, ...]] = {
    name: tuple(key for key in network.model_fields if key != "name") for name, network in zip(NETWORK_NAMES, _NAMED, strict=True)
}
"""The keys beside `name`, by network."""

Spec = TypeVar("Spec", bound=_Network)


def _spelled_out(raw: Any) -> Any:
    """Return the mapping of what is there: `network: mmoe` is short for `network: {name: mmoe}`. Refuses what names no network."""
    if isinstance(raw, _Network):
        return raw
    spelled = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(spelled, dict) or _tag(spelled) not in (*NETWORK_NAMES, _OWN):
        there = f"{_OWN}: package.file:Class"
        raise PydanticCustomError("network", f"{raw!r:.100} is no network; there are {', '.join(NETWORK_NAMES)}, and {there}")
    return spelled


def _tag(network: Any) -> Any:
    if not isinstance(network, dict):
        return getattr(network, "name", _OWN)
    return _OWN if _OWN in network and "name" not in network else network.get("name", DcnDinSpec().name)


NetworkSpec = Annotated[
    Annotated[DcnDinSpec, Tag("dcn_din")]
    | Annotated[DeepFmSpec, Tag("deepfm")]
    | Annotated[DinSpec, Tag("din")]
    | Annotated[DlrmSpec, Tag("dlrm")]
    | Annotated[MmoeSpec, Tag("mmoe")]
    | Annotated[PleSpec, Tag("ple")]
    | Annotated[TwoTowerSpec, Tag("two_tower")]
    | Annotated[OwnNetworkSpec, Tag(_OWN)],
    Discriminator(_tag),
    BeforeValidator(_spelled_out),
]
