"""NVML's answers for made-up machines, replayed through an object that stands for the pynvml module.

The names, sizes, GPU-instance ids and places are those of published listings of `nvidia-smi -L`, `mig -lgip` and `mig -lgi` for these
GPUs, put into the form that pynvml 13 returns; nothing here was recorded by this project on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pynvml

MIB = 2**20


class Nvml:
    """Answers each function by its name and its first arguments; an int in `errors` is an NVML error code."""

    def __init__(self, answers: Mapping[tuple[Any, ...], Any], errors: Mapping[tuple[Any, ...], int] | None = None) -> None:
        self._answers, self._errors = dict(answers), dict(errors or {})
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            key = (name, *arguments)
            if key in self._errors:
                raise pynvml.NVMLError(self._errors[key])
            if key not in self._answers:
                raise AssertionError(f"NVML was asked {key}, for which there is no answer")
            return self._answers[key]

        return call


def gpu(index: int, name: str, memory_mib: int, mode: tuple[int, int] | None) -> tuple[dict[Any, Any], dict[Any, int]]:
    """The answers about one GPU, whose handle is "gpuINDEX"; `mode` is (current, pending), None for a GPU without MIG."""
    handle = f"gpu{index}"
    answers: dict[Any, Any] = {
        ("nvmlDeviceGetHandleByIndex", index): handle,
        ("nvmlDeviceGetName", handle): name,
        ("nvmlDeviceGetUUID", handle): f"GPU-{index:08d}",
        ("nvmlDeviceGetMemoryInfo", handle): SimpleNamespace(total=memory_mib * MIB),
    }
    if mode is None:
        return answers, {("nvmlDeviceGetMigMode", handle): pynvml.NVML_ERROR_NOT_SUPPORTED}
    return answers | {("nvmlDeviceGetMigMode", handle): list(mode), ("nvmlDeviceGetMaxMigDeviceCount", handle): 7}, {}


def slices(index: int, name: str, existing: list[tuple[str, int, int, int, int]]) -> tuple[dict[Any, Any], dict[Any, int]]:
    """The answers about the slices of a GPU, each (profile, memory MiB, compute, GPU-instance id, start), in NVML's order."""
    handle = f"gpu{index}"
    answers: dict[Any, Any] = {}
    errors = {("nvmlDeviceGetMigDeviceHandleByIndex", handle, number): pynvml.NVML_ERROR_NOT_FOUND for number in range(len(existing), 7)}
    for number, (profile, memory_mib, compute, instance, start) in enumerate(existing):
        device = f"{handle}/{number}"
        answers |= {
            ("nvmlDeviceGetMigDeviceHandleByIndex", handle, number): device,
            ("nvmlDeviceGetName", device): f"{name} MIG {profile}",
            ("nvmlDeviceGetUUID", device): f"MIG-{index:04d}-{number:04d}",
            ("nvmlDeviceGetAttributes", device): SimpleNamespace(memorySizeMB=memory_mib, gpuInstanceSliceCount=compute),
            ("nvmlDeviceGetGpuInstanceId", device): instance,
            ("nvmlDeviceGetGpuInstanceById", handle, instance): f"instance{index}.{instance}",
            ("nvmlGpuInstanceGetInfo", f"instance{index}.{instance}"): SimpleNamespace(placement=SimpleNamespace(start=start)),
        }
    return answers, errors


def machine(*gpus: tuple[dict[Any, Any], dict[Any, int]], num_gpus: int, errors: Mapping[Any, int] | None = None) -> Nvml:
    answers: dict[Any, Any] = {("nvmlInit",): None, ("nvmlShutdown",): None, ("nvmlDeviceGetCount",): num_gpus}
    refused: dict[Any, int] = {}
    for one, wrong in gpus:
        answers |= one
        refused |= wrong
    return Nvml(answers, refused | dict(errors or {}))


H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-40GB"


def divided_h100(**errors: int) -> Nvml:
    """An H100 80 GB with 3g.40gb at 0, 1g.20gb at 4 and 1g.10gb at 6."""
    existing = [("3g.40gb", 40448, 3, 1, 0), ("1g.20gb", 20096, 1, 5, 4), ("1g.10gb", 9984, 1, 13, 6)]
    refused = {("nvmlDeviceGetGpuInstanceById", "gpu0", 1): errors["by_id"]} if "by_id" in errors else {}
    if "by_id" in errors:
        refused |= {("nvmlDeviceGetGpuInstanceById", "gpu0", number): errors["by_id"] for number in (5, 13)}
    return machine(gpu(0, H100, 81559, (1, 1)), slices(0, H100, existing), num_gpus=1, errors=refused)


def mixed() -> Nvml:
    """Four GPUs: a T4 without MIG, an A100 with MIG off, one that waits for a reset, and one with MIG on and nothing in it."""
    return machine(
        gpu(0, "Tesla T4", 15360, None),
        gpu(1, A100, 40960, (0, 0)),
        gpu(2, A100, 40960, (0, 1)),
        gpu(3, A100, 40960, (1, 1)),
        slices(3, A100, []),
        num_gpus=4,
    )
