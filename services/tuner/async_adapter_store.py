"""The store of adapters, off the event loop."""

from __future__ import annotations

import asyncio
import logging

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import CorruptArtifact

_log = logging.getLogger(__name__)


class AsyncAdapterStore:
    """An `AdapterStore` whose calls do not block the event loop. What each call does and raises is the store's."""

    def __init__(self, store: AdapterStore) -> None:
        """Take the store."""
        self._store = store

    async def next_name(self, base: str, task: str) -> AdapterName:
        """See AdapterStore."""
        return await asyncio.to_thread(self._store.next_name, base, task)

    async def publish(self, name: AdapterName, folder: str, manifest: AdapterManifest) -> AdapterManifest:
        """See AdapterStore."""
        return await asyncio.to_thread(self._store.publish, name, folder, manifest)

    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        """See AdapterStore."""
        await asyncio.to_thread(self._store.write_verdict, verdict)

    async def newest_decided_tune_ms(self, base: str, task: str) -> int:
        """Return when the newest tune began that the gate decided about, Unix milliseconds; 0 when there is none."""
        return await asyncio.to_thread(self._newest_decided_tune_ms, base, task)

    def _newest_decided_tune_ms(self, base: str, task: str) -> int:
        for name in reversed([name for name in self._store.names(task) if name.base == base]):
            try:
                if self._store.verdict(name) is not None:
                    return self._store.manifest(name).created_at_ms
            except CorruptArtifact as error:
                _log.warning("when %s was tuned is not known: %s", name, error)
        return 0
