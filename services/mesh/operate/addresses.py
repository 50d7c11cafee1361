"""Where the parts of the running mesh listen: a variable, else the mesh in the run folder, else the published port of compose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.mesh.operate.settings import OperateSettings
from services.mesh.runner.run_folder import RunFolder

LOOPBACK = "127.0.0.1"

Part = Literal["kafka", "router", "trainer", "tuner", "llm_admin", "prompt_assembler", "retriever"]


@dataclass(frozen=True, slots=True)
class _Port:
    """The variable that moves a part's loopback port, the port without it, the setting that names another address, and whether compose
    publishes the port."""

    variable: str
    default: int
    setting: str
    is_published: bool = True


_PORTS: dict[Part, _Port] = {
    "kafka": _Port("TUNEMESH_KAFKA_PORT", 19092, "kafka_bootstrap_servers"),
    "router": _Port("TUNEMESH_ROUTER_PORT", 50051, "router_target"),
    "trainer": _Port("TUNEMESH_TRAINER_PORT", 50054, "trainer_target"),
    "tuner": _Port("TUNEMESH_TUNER_PORT", 50062, "tuner_target"),
    "llm_admin": _Port("TUNEMESH_LLM_ADMIN_PORT", 50059, "llm_admin_target", is_published=False),
    "prompt_assembler": _Port("TUNEMESH_PROMPT_ASSEMBLER_PORT", 50061, "prompt_assembler_target"),
    "retriever": _Port("TUNEMESH_RETRIEVER_PORT", 50060, "retriever_target"),
}


class Addresses:
    """Knows where each part is; asks nobody whether it is there."""

    def __init__(self, settings: OperateSettings, run_dir: Path) -> None:
        """Read what the mesh of the run folder says about itself, once."""
        self._settings = settings
        folder = RunFolder(run_dir)
        state = folder.read() if folder.is_up() else None
        self._ports: dict[str, int] = {}
        self._feature_spec = Path(state.feature_spec) if state is not None and state.feature_spec else None
        for service in state.services.values() if state is not None else ():
            self._ports |= service.ports

    def of(self, part: Part) -> str:
        """Return host:port of a part."""
        port = _PORTS[part]
        named = str(getattr(self._settings, port.setting))
        return named or f"{LOOPBACK}:{self._ports.get(port.variable, port.default)}"

    @property
    def feature_spec(self) -> Path:
        """The feature spec: of the variable, else that which the mesh in the run folder was started with, else the one that ships."""
        is_said = "feature_spec_path" in self._settings.model_fields_set
        return self._settings.feature_spec_path if is_said or self._feature_spec is None else self._feature_spec

    def hint(self, part: Part) -> str:
        """Return what to do when nobody answers at the part's address; empty: nothing that is known here."""
        port = _PORTS[part]
        if port.is_published or port.variable in self._ports or getattr(self._settings, port.setting):
            return ""
        return "with Docker this port is inside the network only: use `docker compose run --rm tunemesh …` there"
