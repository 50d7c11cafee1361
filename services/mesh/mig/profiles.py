"""What each GPU can be divided into: profiles with their compute slices, memory slices and the places where they may start.

Source: NVIDIA Multi-Instance GPU User Guide (R590), "Supported MIG Profiles" (tables "GPU Instance Profiles on A100, H100, H200") and
"List GPU Instance Profiles" (the answer of `nvidia-smi mig -lgipp`, the same on all of these). The +me profiles (media engines) are left
out: no service decodes video. Knows nothing about services.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEMORY_SLICES = 8
COMPUTE_SLICES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of slice.

    Attributes:
        name: as nvidia-smi says it, e.g. "3g.40gb".
        compute: compute slices, of 7.
        memory_gb: the size in its name, in GB; CUDA sees a little less (9.75 GiB of a 1g.10gb).
        memory: memory slices, of 8.
        starts: memory slices at which it may begin.
    """

    name: str
    compute: int
    memory_gb: int
    memory: int
    starts: tuple[int, ...]


def _profiles(eighth: int, quarter: int, half: int, whole: int) -> tuple[Profile, ...]:
    """Return the profiles of a GPU, smallest first, by the GB that one, two, four and all memory slices are called."""
    return (
        Profile(name=f"1g.{eighth}gb", compute=1, memory_gb=eighth, memory=1, starts=(0, 1, 2, 3, 4, 5, 6)),
        Profile(name=f"1g.{quarter}gb", compute=1, memory_gb=quarter, memory=2, starts=(0, 2, 4, 6)),
        Profile(name=f"2g.{quarter}gb", compute=2, memory_gb=quarter, memory=2, starts=(0, 2, 4)),
        Profile(name=f"3g.{half}gb", compute=3, memory_gb=half, memory=4, starts=(0, 4)),
        Profile(name=f"4g.{half}gb", compute=4, memory_gb=half, memory=4, starts=(0,)),
        Profile(name=f"7g.{whole}gb", compute=7, memory_gb=whole, memory=8, starts=(0,)),
    )


GPUS: Mapping[str, tuple[Profile, ...]] = {
    "a100-40": _profiles(5, 10, 20, 40),
    "a100-80": _profiles(10, 20, 40, 80),
    "h100-80": _profiles(10, 20, 40, 80),
    "h100-94": _profiles(12, 24, 47, 94),
    "h200-141": _profiles(18, 35, 71, 141),
}
