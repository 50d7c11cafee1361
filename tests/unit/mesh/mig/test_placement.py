"""The planner against every placement there is: what it finds is allowed and cheapest, and what it refuses is impossible."""

import itertools
import random

import pytest

from services.mesh.mig.placement import Need, Refusal, Slice, place
from services.mesh.mig.profiles import GPUS, MEMORY_SLICES, Profile

H100 = GPUS["h100-80"]


def need(service: str, memory_gb: int, compute: int = 1) -> Need:
    return Need(service=service, memory_gb=memory_gb, compute=compute)


def slices(one: Slice) -> set[tuple[int, int]]:
    return {(one.gpu, one.start + offset) for offset in range(one.profile.memory)}


def cheapest_by_trying_all(profiles: tuple[Profile, ...], needs: list[Need], num_gpus: int) -> tuple[int, int] | None:
    """The oracle: every combination of profile, GPU and start."""
    options = [
        [
            Slice(service=one.service, gpu=gpu, profile=profile, start=start)
            for profile in profiles
            if profile.memory_gb >= one.memory_gb and profile.compute >= one.compute
            for gpu in range(num_gpus)
            for start in profile.starts
        ]
        for one in needs
    ]
    costs = []
    for chosen in itertools.product(*options):
        used = [place for one in chosen for place in slices(one)]
        if len(used) == len(set(used)):
            costs.append((sum(one.profile.memory for one in chosen), sum(one.profile.compute for one in chosen)))
    return min(costs, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_the_search_finds_what_trying_everything_finds(seed: int) -> None:
    random_ = random.Random(seed)
    profiles = GPUS[random_.choice(sorted(GPUS))]
    num_gpus = random_.choice([1, 1, 2])
    sizes = sorted({profile.memory_gb for profile in profiles})
    needs = [need(f"s{index}", random_.choice(sizes), random_.choice([1, 1, 1, 2, 3, 4])) for index in range(random_.randint(1, 4))]
    found = place(profiles, needs, num_gpus=num_gpus)
    cost = cheapest_by_trying_all(profiles, needs, num_gpus)
    if cost is None:
        assert isinstance(found, Refusal)
        return
    assert not isinstance(found, Refusal)
    assert [one.service for one in found] == [one.service for one in needs]
    used = [place for one in found for place in slices(one)]
    assert len(used) == len(set(used))
    assert all(one.start in one.profile.starts and 0 <= one.gpu < num_gpus for one in found)
    assert all(one.profile.memory_gb >= wanted.memory_gb for one, wanted in zip(found, needs, strict=True))
    assert all(one.profile.compute >= wanted.compute for one, wanted in zip(found, needs, strict=True))
    assert (sum(one.profile.memory for one in found), sum(one.profile.compute for one in found)) == cost


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_the_table_has_the_instance_counts_of_nvidias_guide(gpu: str) -> None:
    """How often each profile fits alone, from the guide's column "Number of Instances Available"."""
    for profile, number in zip(GPUS[gpu], (7, 4, 3, 2, 1, 1), strict=True):
        fitting = [profile] * number
        assert not isinstance(place([profile], [need(f"s{n}", profile.memory_gb) for n in range(number)]), Refusal), fitting
        assert isinstance(place([profile], [need(f"s{n}", profile.memory_gb) for n in range(number + 1)]), Refusal), fitting
        assert all(start + profile.memory <= MEMORY_SLICES for start in profile.starts)


def test_a_need_of_much_compute_takes_a_larger_slice_than_its_memory_asks_for() -> None:
    [one] = place(H100, [need("llm", 10, compute=4)])
    assert (one.profile.name, one.start) == ("4g.40gb", 0)


def test_sixteen_needs_on_eight_gpus_are_placed_in_no_time() -> None:
    found = place(H100, [need(f"s{index}", 40, compute=3) for index in range(16)], num_gpus=8)
    assert not isinstance(found, Refusal)
    assert {(one.gpu, one.start) for one in found} == {(gpu, start) for gpu in range(8) for start in (0, 4)}


@pytest.mark.parametrize(
    ("needs", "num_gpus", "reason"),
    [
        ([need("llm", 100)], 1, "no slice is large enough for llm (100 GB, 1/7 of the compute): the largest is 7g.80gb"),
        (
            [need("llm", 40), need("tuner", 40), need("triton", 10)],
            1,
            "together the needs take at least 9 memory slices and there are 8 (llm 3g.40gb, tuner 3g.40gb, triton 1g.10gb); "
            "2 such GPUs would do; it fits without any one of them",
        ),
        (
            [need("llm", 10, 4), need("tuner", 10, 4)],
            1,
            "together the needs take at least 8 compute slices and there are 7 (llm 4g.40gb, tuner 4g.40gb); 2 such GPUs would do; "
            "it fits without any one of them",
        ),
        (
            [need("llm", 40, 4), need("tuner", 40, 4), need("triton", 10, 4)],
            2,
            "the slices would suffice by number, but not by where they may start "
            "(llm 4g.40gb, tuner 4g.40gb, triton 4g.40gb; 4g.40gb at 0); 3 such GPUs would do; it fits without any one of them",
        ),
    ],
)
def test_a_refusal_says_what_is_in_the_way_and_what_would_help(needs: list[Need], num_gpus: int, reason: str) -> None:
    found = place(H100, needs, num_gpus=num_gpus)
    assert isinstance(found, Refusal)
    assert reason in found.reason
