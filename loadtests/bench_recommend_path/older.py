"""Names of today for the modules of a checkout from before services.common had rooms, so that world, worker and scorer run under it too.

Imported first by what is run by path. Does nothing where the rooms are there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import dataclass

# Today's name: the name then.
_THEN = {
    "services.common.platform.grpc_server": "services.common.grpc_server",
    "services.common.platform.ids": "services.common.ids",
    "services.common.platform.settings": "services.common.settings",
    "services.common.platform.telemetry": "services.common.telemetry",
    "services.common.ranker.exposure_block": "services.common.exposure_block",
    "services.common.ranker.feature_records": "services.common.features",
    "services.common.ranker.feature_spec": "services.common.feature_spec",
    "services.common.ranker.features": "services.common.features",
    "services.common.ranker.states": "services.common.features",
    "services.common.ranker.tables.control_block": "services.common.tables.generation",
    "services.common.ranker.tables.writer": "services.common.tables.writer",
    "services.router.grpc_recommender": "services.router.adapters",
}


@dataclass(frozen=True)
class _CatalogItem:
    item_id: str
    categories: tuple[str, ...]


class _Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of then under today's name; packages that were none yet are empty ones."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:  # noqa: ARG002 - Python's
        """Know the names of `_THEN`, the packages above them, and the catalogue's item."""
        is_package = any(name.startswith(f"{fullname}.") for name in (*_THEN, _CATALOG))
        if fullname not in (*_THEN, _CATALOG) and not is_package:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Return the module of then."""
        if spec.name in _THEN:
            return importlib.import_module(_THEN[spec.name])
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is left to run but the catalogue's item, which then was read from bytes only."""
        if module.__name__ == _CATALOG:
            vars(module)["CatalogItem"] = _CatalogItem


_CATALOG = "services.common.events.catalog"

if importlib.util.find_spec("services.common.ranker") is None:
    # Behind Python's own: what is there under its name is found first.
    sys.meta_path.append(_Names())
