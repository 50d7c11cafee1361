"""What each GPU can be divided into: profiles with their compute slices, memory slices and the places where they may start.

Sources: NVIDIA Multi-Instance GPU User Guide (R590), "Supported MIG Profiles" (numbers of instances) and "List GPU Instance Profiles" (the
answer of `nvidia-smi mig -lgipp`). NVIDIA/mig-parted, deployments/systemd/config-default.yaml, and for B300 and GB300 the same file of a
later GPU Operator (names and numbers of instances of each board). NVIDIA/go-nvml, pkg/nvml/mock (placements of A30, A100, H100, H200 and
B200). Where no placements are published (RTX PRO 6000) they are those of a GPU with as many slices (A30), with which the numbers of
instances agree. Names follow the driver: a GB200 has 7g.186gb or 7g.189gb, so it stands here twice.

The +me, -me and +gfx profiles (media engines, graphics) are left out: no service decodes video or draws. Knows nothing about services.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of slice.

    Attributes:
        name: as nvidia-smi says it, e.g. "3g.40gb".
        compute: compute slices, of the GPU's.
        memory_gb: the size in its name, in GB; CUDA sees a little less (9.75 GiB of a 1g.10gb).
        memory: memory slices, of the GPU's.
        starts: memory slices at which it may begin.
    """

    name: str
    compute: int
    memory_gb: int
    memory: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU: its profiles, smallest first, and how many slices of memory and of compute it has."""

    profiles: tuple[Profile, ...]
    memory: int
    compute: int


def _of_seven(eighth: int, quarter: int, half: int, whole: int) -> Gpu:
    """Return a GPU of seven compute and eight memory slices, by the GB that one, two, four and all memory slices are called.

    Two memory slices come with one compute slice as well ("double memory"): 1g.35gb is that of an H200, and the plain slice of a GB300.
    """
    return Gpu(
        profiles=(
            Profile(name=f"1g.{eighth}gb", compute=1, memory_gb=eighth, memory=1, starts=(0, 1, 2, 3, 4, 5, 6)),
            Profile(name=f"1g.{quarter}gb", compute=1, memory_gb=quarter, memory=2, starts=(0, 2, 4, 6)),
            Profile(name=f"2g.{quarter}gb", compute=2, memory_gb=quarter, memory=2, starts=(0, 2, 4)),
            Profile(name=f"3g.{half}gb", compute=3, memory_gb=half, memory=4, starts=(0, 4)),
            Profile(name=f"4g.{half}gb", compute=4, memory_gb=half, memory=4, starts=(0,)),
            Profile(name=f"7g.{whole}gb", compute=7, memory_gb=whole, memory=8, starts=(0,)),
        ),
        memory=8,
        compute=7,
    )


def _of_four(quarter: int, half: int, whole: int) -> Gpu:
    """Return a GPU of four compute and four memory slices, by the GB that one, two and all memory slices are called."""
    return Gpu(
        profiles=(
            Profile(name=f"1g.{quarter}gb", compute=1, memory_gb=quarter, memory=1, starts=(0, 1, 2, 3)),
            Profile(name=f"2g.{half}gb", compute=2, memory_gb=half, memory=2, starts=(0, 2)),
            Profile(name=f"4g.{whole}gb", compute=4, memory_gb=whole, memory=4, starts=(0,)),
        ),
        memory=4,
        compute=4,
    )


GPUS: Mapping[str, Gpu] = {
    "a30-24": _of_four(6, 12, 24),
    "a100-40": _of_seven(5, 10, 20, 40),
    "a100-80": _of_seven(10, 20, 40, 80),
    "h20-96": _of_seven(12, 24, 48, 96),
    "h100-80": _of_seven(10, 20, 40, 80),
    "h100-94": _of_seven(12, 24, 47, 94),
    "h100-96": _of_seven(12, 24, 48, 96),
    "gh200-96": _of_seven(12, 24, 48, 96),
    "gh200-144": _of_seven(18, 36, 72, 144),
    "h200-141": _of_seven(18, 35, 71, 141),
    "b200-180": _of_seven(23, 45, 90, 180),
    "gb200-186": _of_seven(23, 47, 93, 186),
    "gb200-189": _of_seven(24, 47, 95, 189),
    "b300-269": _of_seven(34, 67, 135, 269),
    "gb300-278": _of_seven(35, 70, 139, 278),
    "rtx-pro-6000-96": _of_four(24, 48, 96),
}
