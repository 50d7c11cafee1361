"""Finds slices for the needs of services on one or more equal GPUs: an exact search, and the reason when there is no solution.

A solution takes the fewest memory slices, then the fewest compute slices. Pure; knows neither NVML nor compose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from services.mesh.mig.profiles import Gpu, Profile

MAX_GPUS = 8
MAX_NEEDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one service wants: at least `memory_gb` (as in the profiles' names) and at least `share` of a GPU's compute; 0: any slice."""

    service: str
    memory_gb: int
    share: Fraction = Fraction(0)

    def compute(self, gpu: Gpu) -> int:
        """Return the compute slices of such a GPU that the share is, rounded up; at least one."""
        return max(1, math.ceil(self.share * gpu.compute))

    def on(self, gpu: Gpu) -> str:
        """Return the need in words."""
        return f"{self.service} ({self.memory_gb} GB, {self.compute(gpu)}/{gpu.compute} of the compute)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One slice of a plan: the profile begins at memory slice `start` of GPU number `gpu`."""

    service: str
    gpu: int
    profile: Profile
    start: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no placement exists, in one sentence or two."""

    reason: str


# Occupied memory slices, one bit mask a GPU.
_Masks = tuple[int, ...]
# Memory slices, then compute slices.
_Cost = tuple[int, int]
_Completion = tuple[_Cost, tuple[Slice, ...]]


def place(gpu: Gpu, needs: Sequence[Need], *, num_gpus: int = 1) -> tuple[Slice, ...] | Refusal:
    """Return one slice for each need, in the order of the needs, or why that cannot be.

    Args:
        gpu: what each of the GPUs is.
        needs: at most MAX_NEEDS, of distinct services.
        num_gpus: 1 to MAX_GPUS equal GPUs, none of them divided yet.
    """
    found = _Search(gpu, needs, num_gpus).solve()
    return Refusal(_reason(gpu, needs, num_gpus)) if found is None else found


class _Search:
    """Goes through the needs, largest first, and remembers the best completion of each set of occupied slices.

    Equal GPUs are interchangeable: a state is the sorted masks, and a completion counts GPUs by their place in that order.
    """

    def __init__(self, gpu: Gpu, needs: Sequence[Need], num_gpus: int) -> None:
        self._given, self._num_gpus = needs, num_gpus
        self._needs = sorted(needs, key=lambda need: (-need.memory_gb, -need.compute(gpu), need.service))
        self._fitting = [_fitting(gpu, need) for need in self._needs]
        self._known: dict[tuple[int, _Masks], _Completion | None] = {}

    def solve(self) -> tuple[Slice, ...] | None:
        """Return the cheapest slices in the order of the needs as given, None when they do not fit."""
        if not all(self._fitting):
            return None
        found = self._complete(0, (0,) * self._num_gpus)
        if found is None:
            return None
        by_service = {one.service: one for one in found[1]}
        return tuple(by_service[need.service] for need in self._given)

    def _complete(self, index: int, masks: _Masks) -> _Completion | None:
        """Return the cheapest way to place the needs from `index` on, None when there is none."""
        if index == len(self._needs):
            return (0, 0), ()
        if (index, masks) not in self._known:
            self._known[index, masks] = self._cheapest(index, masks)
        return self._known[index, masks]

    def _cheapest(self, index: int, masks: _Masks) -> _Completion | None:
        best: _Completion | None = None
        bound = self._bound(index)
        for one, taken, order in self._choices(index, masks):
            rest = self._complete(index + 1, taken)
            if rest is None:
                continue
            cost = (one.profile.memory + rest[0][0], one.profile.compute + rest[0][1])
            if best is None or cost < best[0]:
                best = cost, (one, *(replace(other, gpu=order[other.gpu]) for other in rest[1]))
            if cost == bound:
                break
        return best

    def _bound(self, index: int) -> _Cost:
        """Return what the needs from `index` on cost at least: each at its cheapest."""
        cheapest = [min((one.memory, one.compute) for one in fitting) for fitting in self._fitting[index:]]
        return sum(memory for memory, _ in cheapest), sum(compute for _, compute in cheapest)

    def _choices(self, index: int, masks: _Masks) -> Iterator[tuple[Slice, _Masks, tuple[int, ...]]]:
        """Yield each slice for a need, the masks after it, sorted, and for each place in them the place it had before."""
        for profile in self._fitting[index]:
            for gpu, mask in enumerate(masks):
                if mask in masks[:gpu]:  # another GPU with the same slices free is no other choice
                    continue
                for start in profile.starts:
                    wanted = ((1 << profile.memory) - 1) << start
                    if not mask & wanted:
                        taken = [*masks[:gpu], mask | wanted, *masks[gpu + 1 :]]
                        order = tuple(sorted(range(len(taken)), key=taken.__getitem__, reverse=True))
                        one = Slice(service=self._needs[index].service, gpu=gpu, profile=profile, start=start)
                        yield one, tuple(taken[place] for place in order), order


def _fitting(gpu: Gpu, need: Need) -> list[Profile]:
    return [one for one in gpu.profiles if one.memory_gb >= need.memory_gb and one.compute >= need.compute(gpu)]


def _reason(gpu: Gpu, needs: Sequence[Need], num_gpus: int) -> str:
    """Say what is in the way: one need alone, the sums, or the places where slices may start; and what would help."""
    alone = [need for need in needs if not _fitting(gpu, need)]
    if alone:
        largest = max(gpu.profiles, key=lambda one: (one.compute, one.memory_gb))
        return f"no slice is large enough for {', '.join(need.on(gpu) for need in alone)}: the largest is {largest.name}"
    smallest = {need.service: min(_fitting(gpu, need), key=lambda one: (one.memory, one.compute)) for need in needs}
    memory = sum(one.memory for one in smallest.values())
    compute = sum(min(_fitting(gpu, need), key=lambda one: one.compute).compute for need in needs)
    listed = ", ".join(f"{service} {one.name}" for service, one in smallest.items())
    if memory > gpu.memory * num_gpus:
        what = f"together the needs take at least {memory} memory slices and there are {gpu.memory * num_gpus} ({listed})"
    elif compute > gpu.compute * num_gpus:
        what = f"together the needs take at least {compute} compute slices and there are {gpu.compute * num_gpus} ({listed})"
    else:
        starts = ", ".join(f"{one.name} at {' or '.join(map(str, one.starts))}" for one in dict.fromkeys(smallest.values()))
        what = f"the slices would suffice by number, but not by where they may start ({listed}; {starts})"
    return "; ".join([what, *_remedies(gpu, needs, num_gpus)])


def _remedies(gpu: Gpu, needs: Sequence[Need], num_gpus: int) -> Iterator[str]:
    for more in range(num_gpus + 1, min(MAX_GPUS, len(needs)) + 1):
        if _Search(gpu, needs, more).solve() is not None:
            yield f"{more} such GPUs would do"
            break
    spare = [need.service for need in needs if _Search(gpu, [other for other in needs if other != need], num_gpus).solve() is not None]
    if spare:
        yield f"it fits without {'any one of them' if len(spare) == len(needs) else ' or without '.join(spare)}"
