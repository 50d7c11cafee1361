"""Where the mesh is: addresses from the command line, else from the run folder of the running mesh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.state import MeshState

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """host:port of what the load talks to; empty when it is not there. `has_llm`: whether Generate can be asked."""

    router: str
    collector: str
    kafka: str
    has_llm: bool


def find(run_dir: Path, *, router: str = "", collector: str = "", kafka: str = "") -> Targets:
    """Return the addresses: the given ones, and for those left empty the ones of the mesh that runs in `run_dir`.

    Whoever gives the router's address says by the rates what to call; without a state, Generate counts as there.

    Raises:
        ConfigurationError: the router's address is neither given nor known.
    """
    folder = RunFolder(run_dir)
    state = folder.read() if folder.is_up() else None
    if state is None and not router:
        raise ConfigurationError(f"no mesh is up in {run_dir}: start one (make up), or name its folder (--run-dir) or address (--router)")
    return Targets(
        router=router or _address(state, "router"),
        collector=collector or _address(state, "feedback_collector"),
        kafka=kafka or _address(state, "kafka"),
        has_llm=state is None or "llm" in state.services,
    )


def _address(state: MeshState | None, service: str) -> str:
    """Return the address of a service's first port; empty when the runner does not run it."""
    ports = state.services[service].ports if state is not None and service in state.services else {}
    return f"{LOOPBACK}:{next(iter(ports.values()))}" if ports else ""
