"""What a tune needs of its neighbours, as Protocols: training, store, prompts, the running model, control.v1 and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.events.catalog import CatalogItem
from services.common.events.chat import Message, Passage
from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.evaluation import Question
from services.common.platform.errors import ServiceError
from services.tuner.job import Job, Step, TrainingResult
from services.tuner.replay import ReplayExample


class TrainingFailed(ServiceError):
    """The training process ended without an adapter; the message has its last words. Another tune may succeed."""


class Tuning(Protocol):
    """Runs the training."""

    async def train(self, name: AdapterName, job: Job, on_step: Callable[[Step], None]) -> TrainingResult:
        """Train in a process of its own; cancelling kills it. Raises TrainingFailed."""
        ...

    def adapter_folder(self, name: AdapterName) -> str:
        """Return where `train` left the adapter."""
        ...


class Store(Protocol):
    """Where adapters are kept."""

    async def next_name(self, base: str, task: str) -> AdapterName:
        """Return the lowest version above all that the store holds. Raises Unavailable."""
        ...

    async def publish(self, name: AdapterName, folder: str, manifest: AdapterManifest) -> AdapterManifest:
        """Copy an adapter into the store and return its manifest with the content's hash. Raises AdapterExists, Unavailable."""
        ...

    async def manifest(self, name: AdapterName) -> AdapterManifest:
        """Return what an adapter is. Raises NotFound, CorruptArtifact, Unavailable."""
        ...

    async def verdict(self, name: AdapterName) -> AdapterVerdict | None:
        """Return what the adapter gate said; None when it has not spoken. Raises CorruptArtifact, Unavailable."""
        ...

    async def norms(self, name: AdapterName) -> Mapping[str, float]:
        """Return the Euclidean norm of each layer's update, from the weights. Raises NotFound, CorruptArtifact, Unavailable."""
        ...

    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        """Write down what the adapter gate said: once, unless it was undecided. Raises AdapterExists, Unavailable."""
        ...


class ReplaySource(Protocol):
    """Where context-answering examples come from."""

    async def given(self, task: str) -> Sequence[ReplayExample] | None:
        """Return the examples of the task's replay file, else of the one for all tasks; None when there is neither."""
        ...

    async def items(self) -> Sequence[CatalogItem]:
        """Return the catalogue's items as they are now."""
        ...


class Prompts(Protocol):
    """Makes prompts as live requests get them."""

    async def assemble(self, task: str, question: str, passages: Sequence[Passage]) -> tuple[Message, ...]:
        """Return the messages for a question of a task. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the version of the template that it was asked for with."""

    text: str
    prompt_version: str


class Serving(Protocol):
    """The running model."""

    async def load(self, name: AdapterName) -> None:
        """Load and warm; returns when it can answer."""
        ...

    async def unload(self, name: AdapterName) -> None:
        """Free its slot."""
        ...

    async def answer(self, task: str, question: Question, adapter: str) -> Answered:
        """Answer greedily through the router with this adapter, or BASE_MODEL. Raises when another model answered."""
        ...

    async def likelihood(self, messages: Sequence[Message], answer: str, adapter: str) -> float | None:
        """Return the geometric mean of the probabilities of an answer's tokens, 0 to 1; None when the llm cannot tell."""
        ...

    async def base_hash(self) -> str:
        """Return the hash of the base that answers; empty when the llm tells none. Raises Unavailable."""
        ...

    async def wait_live(self, task: str, name: AdapterName) -> bool:
        """Wait until requests of the task are answered with the adapter; return False when that takes too long."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """What an alias points at, and its version (0: it was never set)."""

    target: str
    version: int


class Control(Protocol):
    """The owner of control.v1."""

    async def live(self, task: str) -> Live:
        """Return what answers the task now. Raises Unavailable."""
        ...

    async def set_live(self, task: str, name: AdapterName, expected_version: int) -> None:
        """Move the alias. Raises Conflict when somebody else moved it meanwhile."""
        ...


class Mirror(Protocol):
    """MLflow, which may be down: a tune goes on without it."""

    async def begin(self, name: AdapterName, parameters: Mapping[str, str]) -> str:
        """Begin a run and return its id; empty when MLflow is down."""
        ...

    def changed(self) -> None:
        """Something in the store or an alias changed: copy it over when there is time."""
        ...

    def failed(self, run_id: str, error: str) -> None:
        """A tune failed: end its run. An empty id is a tune that has none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """All of them, and the clock."""

    tuning: Tuning
    store: Store
    replay: ReplaySource
    prompts: Prompts
    serving: Serving
    control: Control
    mirror: Mirror
    now_ms: Callable[[], int]
