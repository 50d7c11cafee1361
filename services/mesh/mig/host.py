"""Reads from NVML what GPUs this machine has and how they are divided. Changes nothing.

Knows pynvml's functions; a test gives an object with recorded answers in place of the module. Not verified on hardware yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import pynvml

from services.common.platform.errors import Unavailable
from services.mesh.mig.placement import Slice

MigMode = Literal["not supported", "off", "on", "on after a reset", "off after a reset"]

_PROFILE = re.compile(r"MIG (\S+)$")
_MODES: Mapping[tuple[bool, bool], MigMode] = {
    (False, False): "off",
    (True, True): "on",
    (False, True): "on after a reset",
    (True, False): "off after a reset",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSlice:
    """One slice that exists. `index` is its number for containers ("GPU:index"); `start` is None without the right to ask (root)."""

    index: int
    uuid: str
    profile: str
    memory_mib: int
    compute: int
    start: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGpu:
    """One GPU of this machine."""

    index: int
    name: str
    uuid: str
    memory_mib: int
    mig: MigMode
    slices: tuple[HostSlice, ...]


def read_host(nvml: Any = pynvml) -> list[HostGpu]:
    """Return the GPUs of this machine; none is an empty list.

    Raises:
        Unavailable: there is no NVIDIA driver, or it does not answer. Retrying helps once it is there.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML does not answer on this machine: {error}") from error
    try:
        return [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML stopped answering: {error}") from error
    finally:
        nvml.nvmlShutdown()


def devices_of(plan: Sequence[Slice], host: Sequence[HostGpu]) -> dict[str, str] | str:
    """Return the device id of each service's slice as it exists on this machine, or a sentence that names what is missing."""
    existing = {(gpu.index, one.profile, one.start): f"{gpu.index}:{one.index}" for gpu in host for one in gpu.slices}
    missing = [one for one in plan if (one.gpu, one.profile.name, one.start) not in existing]
    if missing:
        listed = ", ".join(f"{one.profile.name} at {one.start} of GPU {one.gpu} (for {one.service})" for one in missing)
        return f"this machine has no {listed}: create the slices with the commands above, and ask as root, who may see where they start"
    return {one.service: existing[one.gpu, one.profile.name, one.start] for one in plan}


def _gpu(nvml: Any, index: int) -> HostGpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mode = _unless(pynvml.NVML_ERROR_NOT_SUPPORTED, lambda: nvml.nvmlDeviceGetMigMode(handle))
    mig: MigMode = "not supported" if mode is None else _MODES[bool(mode[0]), bool(mode[1])]
    return HostGpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
        mig=mig,
        slices=_slices(nvml, handle) if mode is not None and mode[0] else (),
    )


def _slices(nvml: Any, gpu: Any) -> tuple[HostSlice, ...]:
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        # Numbers without a slice are "not found"; a later number may have one.
        device = _unless(pynvml.NVML_ERROR_NOT_FOUND, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, index))
        if device is not None:
            found.append(_slice(nvml, gpu, device, index))
    return tuple(found)


def _slice(nvml: Any, gpu: Any, device: Any, index: int) -> HostSlice:
    attributes = nvml.nvmlDeviceGetAttributes(device)
    named = _PROFILE.search(_text(nvml.nvmlDeviceGetName(device)))
    return HostSlice(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(device)),
        profile=named[1] if named else "?",
        memory_mib=attributes.memorySizeMB,
        compute=attributes.gpuInstanceSliceCount,
        start=_unless(pynvml.NVML_ERROR_NO_PERMISSION, lambda: _start(nvml, gpu, device)),
    )


def _start(nvml: Any, gpu: Any, device: Any) -> int:
    instance = nvml.nvmlDeviceGetGpuInstanceById(gpu, nvml.nvmlDeviceGetGpuInstanceId(device))
    return int(nvml.nvmlGpuInstanceGetInfo(instance).placement.start)


def _unless(code: int, ask: Callable[[], T]) -> T | None:
    """Return the answer, or None when NVML refuses with this code."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value != code:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
