"""What is known of a LoRA adapter: its manifest, written with it, and the adapter gate's verdict, written once.

Both are JSON beside the adapter's files; the manifest carries a hash of those. Knows no torch, no peft and no vLLM.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.common.platform.errors import CorruptArtifact

FORMAT_VERSION = 1
CONTENT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files that are an adapter, in the order in which they are hashed."""

Outcome = Literal["accepted", "refused", "undecided"]
"""What the adapter gate may say of an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measured value with its 95 % confidence interval; `num_samples` is what it was measured on."""

    value: float
    low: float
    high: float
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterManifest:
    """What an adapter is and where it comes from."""

    name: str
    base_model: str
    """Name of the base, as in the adapter's."""
    task: str
    content_hash: str = ""
    """ "sha256:…" over configuration and weights. `publish` fills it in; leave it empty there."""
    dataset_hash: str = ""
    """ "sha256:…" over the examples that it was tuned on."""
    parent: str = ""
    """The adapter that was live when it was tuned; empty: the base."""
    replay_share: float = 0.0
    """Share of context-answering examples among those that it was tuned on, 0 to 1."""
    num_examples: int = 0
    """Demonstrations that it was tuned on."""
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """What was known when it was made; the adapter gate's measurements are in the verdict."""
    created_at_ms: int = 0
    mlflow_run_id: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVerdict:
    """What the adapter gate said about an adapter: once, for ever, unless it was undecided."""

    name: str
    accepted: bool
    refusals: tuple[str, ...] = ()
    """Why it was refused, or what could not be shown: sentences with their numbers; empty when accepted."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    compared_with: str = ""
    """The adapter (or base) that was live then."""
    decided_at_ms: int = 0
    is_undecided: bool = False
    """Neither accepted nor refused: too few questions, or a difference too small for them. It may be judged again."""
    questions_needed: int = 0
    """Of an undecided one: how many more questions of one slice would decide it, if they are like those asked; 0: that cannot be told."""
    prompt_version: str = ""
    """Of the template that all its answers were asked for with."""
    base_hash: str = ""
    """Of the base that answered, as the llm says it; empty when it said none."""

    @property
    def outcome(self) -> Outcome:
        """The verdict in a word."""
        return "accepted" if self.accepted else "undecided" if self.is_undecided else "refused"


def hash_content(folder: str | Path) -> str:
    """Return "sha256:…" over the names, sizes and bytes of the two content files of a local folder.

    Raises:
        CorruptArtifact: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in CONTENT_FILES:
        path = Path(folder) / name
        if not path.is_file():
            raise CorruptArtifact(f"{folder} is no adapter: it has no {name}")
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def to_json(value: AdapterManifest | AdapterVerdict) -> bytes:
    """Return what stands in the file, UTF-8."""
    return json.dumps(dataclasses.asdict(value), indent=1, sort_keys=True, allow_nan=False).encode()


def manifest_from(fields: Mapping[str, Any]) -> AdapterManifest:
    """Return the manifest that an object of JSON describes.

    Raises:
        TypeError, KeyError, AttributeError: it describes none.
    """
    return AdapterManifest(**{**fields, "metrics": _to_metrics(fields["metrics"])})


def verdict_from(fields: Mapping[str, Any]) -> AdapterVerdict:
    """Return the verdict that an object of JSON describes.

    Raises:
        TypeError, KeyError, AttributeError: it describes none.
    """
    return AdapterVerdict(**{**fields, "refusals": tuple(fields["refusals"]), "metrics": _to_metrics(fields["metrics"])})


def _to_metrics(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    return {name: Metric(**metric) for name, metric in fields.items()}
