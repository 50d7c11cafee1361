"""MLflow as a mirror: a run and a model version per adapter, and the alias "production" as control.v1 has it.

The adapter store and control.v1 are the truth; this looks at both and writes what MLflow lacks, again and again until it worked. MLflow may
therefore be down at any time, and a tune never waits for it. One way only: an alias that somebody moves in MLflow moves nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import CorruptArtifact, InvalidInput, NotFound, ServiceError
from services.common.platform.settings import process_redactor
from services.tuner.job import Step

_BEGIN_TIMEOUT_S = 5.0
_ALIAS_PREFIX, _ALIAS_SUFFIX = "llm/", "/production"
# Trying again would change nothing, and must not hold up the rest.
_NOT_MIRRORED = (CorruptArtifact, InvalidInput, NotFound)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run ends with.

    Attributes:
        ended_at_ms: time of every metric, Unix milliseconds: the same record written again adds no second point.
        metrics: single values.
        losses: one a step.
        tags: of the run.
        failure: empty unless the tune failed.
    """

    ended_at_ms: int
    metrics: Mapping[str, float]
    losses: Sequence[Step]
    tags: Mapping[str, str]
    failure: str = ""


class Registry(Protocol):
    """MLflow, in our words. Every method blocks. All raise Unavailable when it is down, and InvalidInput or NotFound when it is there and
    will not take this: what names a thing that it does not know, or has no room for.
    """

    def begin_run(self, name: AdapterName, parameters: Mapping[str, str]) -> str:
        """Begin a run that `find_run` finds, and return its id."""
        ...

    def find_run(self, name: AdapterName, run_id: str) -> str:
        """Return `run_id` when MLflow has that run, else the newest run of the adapter's name that did not fail; empty: there is none."""
        ...

    def end_run(self, run_id: str, record: RunRecord) -> None:
        """Write what the run ends with. Harmless when repeated."""
        ...

    def put_version(self, name: AdapterName, run_id: str, tags: Mapping[str, str]) -> str:
        """Return the adapter's version of the registered model base--task, made when there is none, with these tags."""
        ...

    def point_alias(self, base: str, task: str, version: str) -> None:
        """Point the alias "production" of the registered model at a version; "" takes the alias away."""
        ...


class Reconciler:
    """Writes what MLflow lacks. One thread at a time calls it."""

    def __init__(
        self,
        base: str,
        store: AdapterStore,
        registry: Registry,
        *,
        aliases: Callable[[], Mapping[str, str]],
        losses: Callable[[AdapterName], Sequence[Step]],
    ) -> None:
        """`aliases`: alias -> target, as control.v1 says; `losses`: of a training whose folder is still there, else empty."""
        self._base, self._store, self._registry, self._aliases, self._losses = base, store, registry, aliases, losses
        self._mirrored: dict[AdapterName, bool] = {}
        self._undecided: dict[AdapterName, AdapterVerdict] = {}
        self._versions: dict[AdapterName, str] = {}
        self._pointed: dict[str, str] = {}
        self._failures: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def note_failure(self, run_id: str, error: str) -> None:
        """Have the run of a failed tune ended next time. Any thread may call it."""
        with self._lock:
            self._failures.append((run_id, error))

    def reconcile(self) -> None:
        """Write everything that is not in MLflow yet.

        Raises:
            ServiceError: MLflow or the store is down; what was written stays, the rest is written next time.
        """
        for name in self._store.names():
            if name.base != self._base or self._mirrored.get(name):
                continue
            try:
                self._mirror_adapter(name)
            except _NOT_MIRRORED as error:
                _log.error("adapter %s is not mirrored: %s", name, error)
                self._mirrored[name] = True
        self._end_failures()
        self._mirror_aliases()

    def _mirror_adapter(self, name: AdapterName) -> None:
        verdict = self._store.verdict(name)
        if name in self._mirrored and (verdict is None or verdict == self._undecided.get(name)):
            return
        manifest = self._store.manifest(name)
        run_id = self._registry.find_run(name, manifest.mlflow_run_id) or self._registry.begin_run(name, _parameters(manifest))
        self._versions[name] = self._registry.put_version(name, run_id, _tags(manifest, verdict))
        if verdict is not None:
            metrics = {metric: value.value for metric, value in verdict.metrics.items()}
            metrics |= {f"{metric}.{end}": getattr(value, end) for metric, value in verdict.metrics.items() for end in ("low", "high")}
            record = RunRecord(ended_at_ms=verdict.decided_at_ms, metrics=metrics, losses=self._losses(name), tags=_tags(manifest, verdict))
            self._registry.end_run(run_id, record)
            if verdict.is_undecided:
                self._undecided[name] = verdict
        self._mirrored[name] = verdict is not None and not verdict.is_undecided

    def _end_failures(self) -> None:
        while self._failures:
            run_id, error = self._failures[0]
            try:
                self._registry.end_run(run_id, RunRecord(ended_at_ms=0, metrics={}, losses=(), tags={}, failure=error))
            except _NOT_MIRRORED as refusal:
                _log.error("run %s of a failed tune is not ended: %s", run_id, refusal)
            with self._lock:
                self._failures.pop(0)

    def _mirror_aliases(self) -> None:
        versions = {str(name): version for name, version in self._versions.items()}
        for alias, target in self._aliases().items():
            if not (alias.startswith(_ALIAS_PREFIX) and alias.endswith(_ALIAS_SUFFIX)) or self._pointed.get(alias) == target:
                continue
            task = alias.removeprefix(_ALIAS_PREFIX).removesuffix(_ALIAS_SUFFIX)
            if not any(name.task == task for name in self._versions):
                continue
            if target != BASE_MODEL and target not in versions:
                _log.warning("%s points at %s, which the store does not have: MLflow's alias stays as it is", alias, target)
                continue
            try:
                self._registry.point_alias(self._base, task, versions.get(target, ""))
            except _NOT_MIRRORED as error:
                _log.error("MLflow's alias of task %s stays as it is: %s", task, error)
            self._pointed[alias] = target


class Mirror:
    """Runs the reconciler in a thread whenever something changed, and again later when MLflow was down. See `tune.Mirror`."""

    def __init__(self, reconciler: Reconciler, registry: Registry, *, retry_s: float) -> None:
        """Must be made on the event loop that runs it."""
        self._reconciler, self._registry, self._retry_s = reconciler, registry, retry_s
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._news.set()

    async def begin(self, name: AdapterName, parameters: Mapping[str, str]) -> str:
        """Begin a run and return its id; empty when MLflow does not answer soon: the run is then made afterwards."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._registry.begin_run, name, parameters), _BEGIN_TIMEOUT_S)
        except (ServiceError, TimeoutError) as error:
            _log.warning("MLflow is down, the tune of %s goes on without it: %s", name, error or "no answer in time")
            return ""

    def changed(self) -> None:
        """Have MLflow brought up to date. Any thread may call it."""
        self._loop.call_soon_threadsafe(self._news.set)

    def failed(self, run_id: str, error: str) -> None:
        """Have the run of a failed tune ended."""
        if run_id:
            self._reconciler.note_failure(run_id, process_redactor()(error))
        self.changed()

    async def run(self) -> None:
        """Mirror until cancelled."""
        is_down = False
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await asyncio.to_thread(self._reconciler.reconcile)
            except Exception as error:  # noqa: BLE001 - a mirror that fails, for whatever reason, must not end a tune
                if not is_down:
                    is_known = isinstance(error, ServiceError)
                    _log.warning(
                        "MLflow does not have everything yet, tried again every %.0f s: %s", self._retry_s, error, exc_info=not is_known
                    )
                is_down = True
                await asyncio.sleep(self._retry_s)
                self._news.set()
                continue
            if is_down:
                _log.info("MLflow has caught up")
            is_down = False


class NoMirror:
    """What is used when no MLflow is set."""

    async def begin(self, name: AdapterName, parameters: Mapping[str, str]) -> str:  # noqa: ARG002 - see tune.Mirror
        """Return no id."""
        return ""

    def changed(self) -> None:
        """Nothing is mirrored."""

    def failed(self, run_id: str, error: str) -> None:
        """Nothing is mirrored."""

    async def run(self) -> None:
        """Wait until cancelled."""
        await asyncio.Event().wait()


def _parameters(manifest: AdapterManifest) -> dict[str, str]:
    known = {name: str(value) for name, value in manifest.hyper_parameters.items()}
    return {
        **known,
        "dataset_hash": manifest.dataset_hash,
        "replay_share": f"{manifest.replay_share:g}",
        "num_demonstrations": str(manifest.num_examples),
        "parent": manifest.parent or BASE_MODEL,
    }


def _tags(manifest: AdapterManifest, verdict: AdapterVerdict | None) -> dict[str, str]:
    tags = {"tunemesh.content_hash": manifest.content_hash, "tunemesh.dataset_hash": manifest.dataset_hash}
    if verdict is None:
        return tags | {"tunemesh.verdict": "none yet"}
    tags["tunemesh.verdict"] = verdict.outcome
    if verdict.refusals:
        tags["tunemesh.refusals"] = "; ".join(verdict.refusals)
    return tags
