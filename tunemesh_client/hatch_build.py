"""Puts this folder's modules into the wheel as the package `tunemesh_client`. Run by hatchling; not part of the wheel.

hatchling's own setting for that (`sources`) would move the generated code of the contracts under `tunemesh_client/` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ClientBuildHook(BuildHookInterface[Any]):
    """Adds the files of the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface's signature
        """Called before the wheel is written."""
        for path in sorted(Path(self.root).iterdir()):
            if path.suffix in (".py", ".typed") and path.name != Path(__file__).name:
                build_data["force_include"][str(path)] = f"tunemesh_client/{path.name}"
