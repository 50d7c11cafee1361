"""Carries out what the slots decide: fetches adapters, has the engine load, warm and unload them, and follows the aliases.

A load or unload that has begun goes on when its caller hangs up. Knows no vLLM and no Kafka: the engine, the files and the aliases are
passed in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.platform.errors import Conflict, CorruptArtifact, InvalidInput, ServiceError, Unavailable
from services.llm.core.generation import Adapters, LoadedAdapter
from services.llm.core.slots import AdapterDraining, Slot, Slots

LLM_ALIAS_PREFIX = "llm/"

_FIRST_RETRY_S, _MAX_RETRY_S = 1.0, 30.0
_ResultT = TypeVar("_ResultT")

_log = logging.getLogger(__name__)


class WrongBase(Conflict):
    """The adapter is made for another base model. Retrying does not help."""


class AdapterUnusable(Conflict):
    """The adapter is damaged, or the engine does not take it. Retrying does not help: publish a new version."""


class LoraEngine(Protocol):
    """What the pool needs of the engine."""

    async def add_adapter(self, adapter: LoadedAdapter) -> None:
        """Load it.

        Raises:
            AdapterUnusable: the engine does not take it.
            EngineGone: the engine died.
        """
        ...

    async def warm(self, adapter: LoadedAdapter) -> None:
        """Generate a token with it."""
        ...

    async def remove_adapter(self, lora_id: int) -> None:
        """Forget it; no request uses it any more."""
        ...


class AdapterFiles(Protocol):
    """Where adapters come from; every method blocks."""

    def manifest(self, name: str | AdapterName) -> AdapterManifest:
        """Return what an adapter is. Raises AdapterNotFound, BadAdapterName, CorruptArtifact, Unavailable."""
        ...

    def fetch(self, name: str | AdapterName, into: str | Path) -> Path:
        """Copy an adapter to `into`/NAME, check every byte, and return that folder. Raises as `manifest`."""
        ...


class AdapterPool(Adapters):
    """The adapters of this process. All methods run on one event loop."""

    def __init__(
        self, slots: Slots, files: AdapterFiles, engine: LoraEngine, *, base_model: str, folder: Path, remove: Callable[[Path], None]
    ) -> None:
        """Nothing is loaded before `load` or `point`.

        Args:
            slots: empty.
            files: the store.
            engine: up.
            base_model: name of the served one; adapters of another are refused.
            folder: for the fetched files; of this process alone.
            remove: deletes a fetched adapter's folder once it is unloaded; blocks.
        """
        self._slots, self._files, self._engine = slots, files, engine
        self._base_model, self._folder, self._remove = base_model, folder, remove
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._idle: dict[str, asyncio.Event] = {}

    @property
    def adapters(self) -> list[Slot]:
        """Return every loaded adapter, by name."""
        return self._slots.all()

    @property
    def base_model(self) -> str:
        """The name of the served base model."""
        return self._base_model

    @contextmanager
    @override
    def lease(self, name: str) -> Iterator[LoadedAdapter]:
        slot = self._slots.acquire(name)
        try:
            yield self._loaded(name, slot.lora_id)
        finally:
            slot.running -= 1
            if slot.running == 0 and name in self._idle:
                self._idle[name].set()

    async def load(self, name: str) -> Slot:
        """Load and warm an adapter; return when it can serve. One that is loaded already is left alone.

        Raises:
            BadAdapterName: `name` is none.
            AdapterNotFound: the store does not have it.
            WrongBase: it is made for another model.
            NameTaken: the name stood for other content.
            AdapterDraining: it is being unloaded.
            NoSlotFree: no slot can be freed.
            AdapterUnusable: it is damaged, or the engine does not take it.
            Unavailable: the store or the engine cannot be reached.
        """
        parsed = AdapterName.parse(name)
        if parsed.base != self._base_model:
            raise WrongBase(f"adapter {name} is made for {parsed.base}; this process serves {self._base_model}")
        manifest = await self._read(self._files.manifest, parsed)
        if manifest.base_model != self._base_model:
            raise WrongBase(f"the manifest of {name} names the base {manifest.base_model}; this process serves {self._base_model}")
        running = self._tasks.get(name)
        loading = self._slots.begin_load(name, manifest.content_hash)
        if loading is not None:
            running = self._start(name, self._load(name, loading.lora_id, loading.evict))
        if running is not None:
            await asyncio.shield(running)
        slot = self._slots.get(name)
        if slot is None:
            raise AdapterDraining(f"adapter {name} was unloaded while it was being loaded: try again")
        return slot

    async def unload(self, name: str) -> None:
        """Refuse new requests for an adapter, wait until the running ones end, and free its slot.

        Raises:
            AdapterNotLoaded: it has no slot.
            AdapterAliased: an alias points at it.
            AdapterDraining: it is being loaded, or unloaded already.
        """
        self._slots.begin_unload(name)
        await asyncio.shield(self._start(name, self._unload(name)))

    def point(self, targets: Mapping[str, str]) -> list[str]:
        """Take note of all aliases (alias -> target); return the adapters that `llm/…` aliases want and that are not loaded."""
        wanted = {alias: target for alias, target in targets.items() if alias.startswith(LLM_ALIAS_PREFIX) and target != BASE_MODEL}
        return self._slots.point(wanted)

    async def remove_leftovers(self, targets: Mapping[str, str]) -> None:
        """Delete what earlier processes fetched and no alias points at any more. Call it before anything is loaded."""
        try:
            await asyncio.to_thread(self._remove_all_but, set(targets.values()))
        except OSError as error:
            _log.warning("what earlier processes fetched into %s stays there: %s", self._folder, error)

    def _remove_all_but(self, wanted: Set[str]) -> None:
        if not self._folder.is_dir():
            return
        for folder in sorted(self._folder.iterdir()):
            if folder.is_dir() and folder.name not in wanted and _is_adapter_name(folder.name):
                self._remove(folder)
                _log.info("adapter %s of an earlier process is deleted from %s: no alias points at it", folder.name, self._folder)

    async def keep_up(self, targets: Callable[[], Mapping[str, str]], changed: asyncio.Event, first: asyncio.Event) -> None:
        """Load what the aliases point at, now and after every change, until cancelled. What fails is tried again, and the log says so.

        Args:
            targets: returns alias -> target.
            changed: set when that may be another.
            first: set here when everything was tried once.
        """
        loads: dict[str, asyncio.Task[bool]] = {}  # side by side: one that waits for another's answers to end holds up nobody else
        is_settled: dict[str, bool] = {}  # of those that were tried since the last change
        retry_s = _FIRST_RETRY_S
        try:
            while True:
                if changed.is_set():
                    changed.clear()
                    is_settled, retry_s = {}, _FIRST_RETRY_S
                for name in self.point(targets()):
                    if name not in loads and name not in is_settled:
                        loads[name] = asyncio.ensure_future(self._try_load(name, retry_s))
                if not loads:
                    first.set()
                if not await _something_ended(changed, loads.values(), None if all(is_settled.values()) else retry_s):
                    is_settled = {name: True for name, settled in is_settled.items() if settled}
                    retry_s = min(retry_s * 2, _MAX_RETRY_S)
                is_settled |= {name: loads.pop(name).result() for name in list(loads) if loads[name].done()}
        finally:
            for load in loads.values():
                load.cancel()

    async def _try_load(self, name: str, retry_s: float) -> bool:
        """Return False when it is worth another try."""
        try:
            await self.load(name)
        except (WrongBase, InvalidInput) as error:
            # Nothing but another alias makes this right.
            _log.error("an alias points at what cannot be loaded here: %s", error)
            return True
        except ServiceError as error:
            _log.warning("adapter %s cannot be loaded, its task answers with the base; tried again in %.0f s: %s", name, retry_s, error)
            return False
        return True

    async def _load(self, name: str, lora_id: int, evict: str | None) -> None:
        added = False
        adapter = self._loaded(name, lora_id)
        try:
            if evict is not None:
                _log.info("adapter %s is unloaded to make room for %s", evict, name)
                await self._start(evict, self._unload(evict))
            await self._read(self._files.fetch, name, self._folder)
            await self._engine.add_adapter(adapter)
            added = True
            await self._engine.warm(adapter)
        except BaseException as error:
            try:
                if added and isinstance(error, ServiceError):
                    await self._engine.remove_adapter(lora_id)
                if isinstance(error, AdapterUnusable):
                    await asyncio.to_thread(self._discard, name)
            finally:
                self._slots.fail_load(name)
            raise
        self._slots.end_load(name)
        _log.info("adapter %s is warm (id %d)", name, lora_id)

    async def _unload(self, name: str) -> None:
        slot = self._slots.get(name)
        assert slot is not None and slot.is_draining
        if slot.running:
            self._idle[name] = asyncio.Event()
            await self._idle[name].wait()
            del self._idle[name]
        try:
            await self._engine.remove_adapter(slot.lora_id)
            await asyncio.to_thread(self._discard, name)
        finally:
            self._slots.end_unload(name)
        _log.info("adapter %s is unloaded", name)

    def _discard(self, name: str) -> None:
        if (self._folder / name).is_dir():
            self._remove(self._folder / name)

    def _start(self, name: str, work: Any) -> asyncio.Task[Any]:
        """Run `work` as the adapter's task, which outlives the caller; what it raises reaches those who wait for it."""
        task = self._tasks[name] = asyncio.get_running_loop().create_task(work, name=f"adapter-{name}")

        def ended(task: asyncio.Task[Any]) -> None:
            if self._tasks.get(name) is task:
                del self._tasks[name]
            if not task.cancelled() and task.exception() is not None:
                _log.warning("adapter %s: %s", name, task.exception())

        task.add_done_callback(ended)
        return task

    def _loaded(self, name: str, lora_id: int) -> LoadedAdapter:
        return LoadedAdapter(name=name, lora_id=lora_id, folder=str(self._folder / name))

    async def _read(self, read: Callable[..., _ResultT], *args: object) -> _ResultT:
        try:
            return await asyncio.to_thread(read, *args)
        except CorruptArtifact as error:
            raise AdapterUnusable(str(error)) from error
        except OSError as error:
            raise Unavailable(f"adapters cannot be kept in {self._folder}: {error}") from error

    async def close(self) -> None:
        """Cancel what is being loaded or unloaded."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _something_ended(changed: asyncio.Event, loads: Collection[asyncio.Task[bool]], timeout_s: float | None) -> bool:
    """Wait for a change, or for the end of a load; False when the time was over first."""
    news = asyncio.ensure_future(changed.wait())
    try:
        done, _ = await asyncio.wait({news, *loads}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
    return bool(done)


def _is_adapter_name(text: str) -> bool:
    try:
        AdapterName.parse(text)
    except InvalidInput:
        return False
    return True
