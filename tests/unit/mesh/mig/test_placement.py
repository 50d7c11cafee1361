"""The planner against every placement there is: what it finds is allowed and cheapest, and what it refuses is impossible."""

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from services.mesh.mig.placement import Need, Refusal, Slice, place
from services.mesh.mig.profiles import GPUS, Gpu

H100 = GPUS["h100-80"]


def need(service: str, memory_gb: int, compute: int = 0, *, of: int = 7) -> Need:
    return Need(service=service, memory_gb=memory_gb, share=Fraction(compute, of))


def slices(one: Slice) -> set[tuple[int, int]]:
    return {(one.gpu, one.start + offset) for offset in range(one.profile.memory)}


def cheapest_by_trying_all(kind: Gpu, needs: list[Need], num_gpus: int) -> tuple[int, int] | None:
    """The oracle: every combination of profile, GPU and start."""
    options = [
        [
            Slice(service=one.service, gpu=gpu, profile=profile, start=start)
            for profile in kind.profiles
            if profile.memory_gb >= one.memory_gb and profile.compute >= one.share * kind.compute
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
    kind = GPUS[random_.choice(sorted(GPUS))]
    num_gpus = random_.choice([1, 1, 2])
    sizes = sorted({profile.memory_gb for profile in kind.profiles})
    needs = [
        need(f"s{index}", random_.choice(sizes), random_.choice([0, 0, 1, 2, 3, 4]), of=kind.compute)
        for index in range(random_.randint(1, 4))
    ]
    found = place(kind, needs, num_gpus=num_gpus)
    cost = cheapest_by_trying_all(kind, needs, num_gpus)
    if cost is None:
        assert isinstance(found, Refusal)
        return
    assert not isinstance(found, Refusal)
    assert [one.service for one in found] == [one.service for one in needs]
    used = [place for one in found for place in slices(one)]
    assert len(used) == len(set(used))
    assert all(one.start in one.profile.starts and 0 <= one.gpu < num_gpus for one in found)
    assert all(one.profile.memory_gb >= wanted.memory_gb for one, wanted in zip(found, needs, strict=True))
    assert all(one.profile.compute >= wanted.share * kind.compute for one, wanted in zip(found, needs, strict=True))
    assert (sum(one.profile.memory for one in found), sum(one.profile.compute for one in found)) == cost


# Of NVIDIA/mig-parted's config-default.yaml and the GPU Operator's (B300, GB300, gb200-186): each board's profiles and how many of each it
# holds. "1g" twice: the second is the slice of double memory.
PUBLISHED = {
    "a30-24": "1g.6gb*4 2g.12gb*2 4g.24gb*1",
    "a100-40": "1g.5gb*7 1g.10gb*4 2g.10gb*3 3g.20gb*2 4g.20gb*1 7g.40gb*1",
    "a100-80": "1g.10gb*7 1g.20gb*4 2g.20gb*3 3g.40gb*2 4g.40gb*1 7g.80gb*1",
    "h20-96": "1g.12gb*7 1g.24gb*4 2g.24gb*3 3g.48gb*2 4g.48gb*1 7g.96gb*1",
    "h100-80": "1g.10gb*7 1g.20gb*4 2g.20gb*3 3g.40gb*2 4g.40gb*1 7g.80gb*1",
    "h100-94": "1g.12gb*7 1g.24gb*4 2g.24gb*3 3g.47gb*2 4g.47gb*1 7g.94gb*1",
    "h100-96": "1g.12gb*7 1g.24gb*4 2g.24gb*3 3g.48gb*2 4g.48gb*1 7g.96gb*1",
    "gh200-96": "1g.12gb*7 1g.24gb*4 2g.24gb*3 3g.48gb*2 4g.48gb*1 7g.96gb*1",
    "gh200-144": "1g.18gb*7 1g.36gb*4 2g.36gb*3 3g.72gb*2 4g.72gb*1 7g.144gb*1",
    "h200-141": "1g.18gb*7 1g.35gb*4 2g.35gb*3 3g.71gb*2 4g.71gb*1 7g.141gb*1",
    "b200-180": "1g.23gb*7 1g.45gb*4 2g.45gb*3 3g.90gb*2 4g.90gb*1 7g.180gb*1",
    "gb200-186": "1g.23gb*7 1g.47gb*4 2g.47gb*3 3g.93gb*2 4g.93gb*1 7g.186gb*1",
    "gb200-189": "1g.24gb*7 1g.47gb*4 2g.47gb*3 3g.95gb*2 4g.95gb*1 7g.189gb*1",
    "b300-269": "1g.34gb*7 1g.67gb*4 2g.67gb*3 3g.135gb*2 4g.135gb*1 7g.269gb*1",
    "gb300-278": "1g.35gb*7 1g.70gb*4 2g.70gb*3 3g.139gb*2 4g.139gb*1 7g.278gb*1",
    "rtx-pro-6000-96": "1g.24gb*4 2g.48gb*2 4g.96gb*1",
}
# Its "all-balanced": how a GPU of each kind is divided at once.
BALANCED = {
    "a30-24": [6, 6, 12],
    "a100-40": [5, 5, 10, 20],
    "a100-80": [10, 10, 20, 40],
    "h20-96": [12, 12, 24, 48],
    "h100-94": [12, 12, 24, 47],
    "gh200-144": [18, 18, 36, 72],
    "h200-141": [18, 18, 35, 71],
    "b200-180": [23, 23, 45, 90],
    "gb200-189": [24, 24, 47, 95],
    "b300-269": [34, 34, 67, 135],
    "rtx-pro-6000-96": [24, 24, 48],
}


@pytest.mark.parametrize("gpu", sorted(GPUS | PUBLISHED))
def test_the_table_has_the_profiles_and_the_numbers_of_instances_that_are_published(gpu: str) -> None:
    kind, published = GPUS[gpu], dict(entry.split("*") for entry in PUBLISHED[gpu].split())
    assert [profile.name for profile in kind.profiles] == list(published)
    for profile in kind.profiles:
        alone, number = replace(kind, profiles=(profile,)), int(published[profile.name])
        assert not isinstance(place(alone, [need(f"s{n}", profile.memory_gb) for n in range(number)]), Refusal), profile.name
        assert isinstance(place(alone, [need(f"s{n}", profile.memory_gb) for n in range(number + 1)]), Refusal), profile.name
        assert all(start + profile.memory <= kind.memory for start in profile.starts)
        assert profile.name == f"{profile.compute}g.{profile.memory_gb}gb"


@pytest.mark.parametrize("gpu", sorted(BALANCED))
def test_what_is_published_as_a_balanced_division_is_found(gpu: str) -> None:
    sizes = BALANCED[gpu]
    found = place(GPUS[gpu], [need(f"s{index}", size) for index, size in enumerate(sizes)])
    assert not isinstance(found, Refusal)
    assert [one.profile.memory_gb for one in found] == sizes


def test_a_slice_of_double_memory_on_one_gpu_is_the_plain_slice_of_another() -> None:
    assert [(one.memory, one.starts) for one in GPUS["h200-141"].profiles if one.name == "1g.35gb"] == [(2, (0, 2, 4, 6))]
    assert [(one.memory, one.starts) for one in GPUS["gb300-278"].profiles if one.name == "1g.35gb"] == [(1, (0, 1, 2, 3, 4, 5, 6))]


def test_a_share_is_rounded_up_to_the_slices_of_the_gpu() -> None:
    half = Need(service="llm", memory_gb=10, share=Fraction(1, 2))
    assert (half.compute(H100), half.compute(GPUS["a30-24"]), need("llm", 10).compute(H100)) == (4, 2, 1)


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
