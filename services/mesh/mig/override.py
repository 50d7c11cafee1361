"""Writes down a plan: the nvidia-smi commands that divide the GPUs, and the compose override that gives each service its slice.

Knows compose's form of a device reservation; runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from services.common.platform.errors import ConfigurationError
from services.mesh.mig.placement import Slice


def commands(plan: Sequence[Slice]) -> list[str]:
    """Return the commands that divide the GPUs, each slice at its place (NVIDIA's MIG User Guide, "Creating GPU Instances")."""
    lines = []
    for gpu in sorted({one.gpu for one in plan}):
        specifiers = ",".join(
            f"{one.profile.name}:{one.start}" for one in sorted(plan, key=lambda one: (-one.profile.memory, one.start)) if one.gpu == gpu
        )
        lines += [f"nvidia-smi -i {gpu} -mig 1", f"nvidia-smi mig -i {gpu} -cgi {specifiers} -C"]
    return lines


def compose_names(services: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Return the compose service by the name in a need: NAME-gpu when the file has one, else NAME.

    Raises:
        ConfigurationError: the file has neither.
    """
    found = {}
    for service in services:
        name = next((name for name in (f"{service}-gpu", service) if name in known), None)
        if name is None:
            raise ConfigurationError(f"--need {service}: the compose file has no service {service}-gpu or {service}")
        found[service] = name
    return found


def override(names: Mapping[str, str], devices: Mapping[str, str]) -> str:
    """Return the override file, for `docker compose -f docker-compose.yml -f FILE`.

    Args:
        names: compose service by the name in the need.
        devices: device id by the name in the need, "GPU:MIG" as the NVIDIA container toolkit reads it.

    `!override` (Compose 2.24.4) replaces the device; without it compose would add a second one.
    """
    lines = ["services:"]
    for service, name in names.items():
        lines += [
            f"  {name}:",
            "    deploy: !override",
            "      resources:",
            "        reservations:",
            f'          devices: [{{ driver: nvidia, capabilities: [gpu], device_ids: ["{devices[service]}"] }}]',
        ]
    return "\n".join(lines) + "\n"


def expected_devices(plan: Sequence[Slice]) -> dict[str, str]:
    """Return the device id that each service's slice should get: NVML counts the slices of a GPU by their GPU-instance id, which in
    the listings seen grows from large slices to small ones and then with the start. Not verified: compare with `tunemesh mig status`,
    or plan with --on-host once the slices exist.
    """
    devices: dict[str, str] = {}
    for gpu in {one.gpu for one in plan}:
        ordered = sorted((one for one in plan if one.gpu == gpu), key=lambda one: (-one.profile.memory, one.start))
        devices |= {one.service: f"{gpu}:{index}" for index, one in enumerate(ordered)}
    return devices
