"""The store of adapters, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import override

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import CorruptArtifact
from services.tuner.lora_norms import update_norms
from services.tuner.neighbours import Store
from services.tuner.tuner import History

_log = logging.getLogger(__name__)


class AsyncAdapterStore(Store, History):
    """An `AdapterStore` whose calls do not block the event loop."""

    def __init__(self, store: AdapterStore) -> None:
        """Take the store."""
        self._store = store

    @override
    async def next_name(self, base: str, task: str) -> AdapterName:
        return await asyncio.to_thread(self._store.next_name, base, task)

    @override
    async def publish(self, name: AdapterName, folder: str, manifest: AdapterManifest) -> AdapterManifest:
        return await asyncio.to_thread(self._store.publish, name, folder, manifest)

    @override
    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        await asyncio.to_thread(self._store.write_verdict, verdict)

    @override
    async def manifest(self, name: AdapterName) -> AdapterManifest:
        return await asyncio.to_thread(self._store.manifest, name)

    @override
    async def verdict(self, name: AdapterName) -> AdapterVerdict | None:
        return await asyncio.to_thread(self._store.verdict, name)

    @override
    async def norms(self, name: AdapterName) -> Mapping[str, float]:
        return await asyncio.to_thread(self._norms, name)

    def _norms(self, name: AdapterName) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            return update_norms(self._store.fetch(name, Path(folder)))

    @override
    async def newest_decided_tune_ms(self, base: str, task: str) -> int:
        return await asyncio.to_thread(self._newest_decided_tune_ms, base, task)

    def _newest_decided_tune_ms(self, base: str, task: str) -> int:
        for name in reversed([name for name in self._store.names(task) if name.base == base]):
            try:
                if self._store.verdict(name) is not None:
                    return self._store.manifest(name).created_at_ms
            except CorruptArtifact as error:
                _log.warning("when %s was tuned is not known: %s", name, error)
        return 0
