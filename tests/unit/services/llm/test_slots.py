"""Which adapters are loaded, by the pure state machine alone."""

from __future__ import annotations

import pytest

from services.llm.core.slots import AdapterAliased, AdapterDraining, AdapterNotLoaded, NameTaken, NoSlotFree, Slots, State


def loaded(slots: Slots, name: str, content: str = "") -> None:
    loading = slots.begin_load(name, content or f"hash of {name}")
    assert loading is not None
    if loading.evict is not None:
        slots.end_unload(loading.evict)
    slots.end_load(name)


def states(slots: Slots) -> dict[str, State]:
    return {slot.name: slot.state for slot in slots.all()}


def test_an_adapter_is_loading_then_warm_then_live_then_warm_again():
    slots = Slots(2)
    assert slots.begin_load("a", "1") is not None
    assert states(slots) == {"a": State.LOADING}
    slots.end_load("a")
    assert states(slots) == {"a": State.WARM}
    slots.point({"llm/t/production": "a"})
    assert states(slots) == {"a": State.LIVE}
    assert slots.all()[0].aliases == ("llm/t/production",)
    slots.point({})
    assert states(slots) == {"a": State.WARM}
    slots.begin_unload("a")
    assert states(slots) == {"a": State.DRAINING}
    slots.end_unload("a")
    assert states(slots) == {}


def test_only_a_warm_adapter_takes_requests():
    slots = Slots(2)
    with pytest.raises(AdapterNotLoaded, match="is not loaded"):
        slots.acquire("a")
    slots.begin_load("a", "1")
    with pytest.raises(AdapterNotLoaded, match="is loading"):
        slots.acquire("a")
    slots.end_load("a")
    assert slots.acquire("a").running == 1
    slots.begin_unload("a")
    with pytest.raises(AdapterNotLoaded, match="is draining"):
        slots.acquire("a")


def test_an_integer_id_is_never_used_again():
    slots = Slots(1)
    ids = []
    for name in ("a", "b", "a", "c"):
        loading = slots.begin_load(name, f"hash of {name}")
        assert loading is not None
        ids.append(loading.lora_id)
        if loading.evict is not None:
            slots.end_unload(loading.evict)
        slots.end_load(name)
    slots.fail_load("c")
    again = slots.begin_load("c", "hash of c")
    assert again is not None
    assert len({*ids, again.lora_id}) == 5


def test_a_name_never_stands_for_other_content_even_after_an_unload():
    slots = Slots(2)
    loaded(slots, "a", "1")
    assert slots.begin_load("a", "1") is None
    with pytest.raises(NameTaken):
        slots.begin_load("a", "2")
    slots.begin_unload("a")
    slots.end_unload("a")
    with pytest.raises(NameTaken):
        slots.begin_load("a", "2")


def test_when_slots_are_needed_the_adapter_whose_alias_is_longest_ago_goes():
    slots = Slots(3)
    for name in ("a", "b", "c"):
        loaded(slots, name)
        slots.point({"llm/t/production": name})
    slots.point({"llm/t/production": "a"})  # a rollback: b lost its alias first, c last
    loading = slots.begin_load("d", "4")
    assert loading is not None and loading.evict == "b"
    assert states(slots) == {"a": State.LIVE, "b": State.DRAINING, "c": State.WARM, "d": State.LOADING}


def test_an_idle_adapter_goes_before_a_busy_one():
    slots = Slots(2)
    loaded(slots, "a")
    loaded(slots, "b")
    slots.acquire("a")
    loading = slots.begin_load("c", "3")
    assert loading is not None and loading.evict == "b"


def test_what_an_alias_points_at_or_what_is_loading_is_not_evicted():
    slots = Slots(2)
    loaded(slots, "a")
    slots.point({"llm/t/production": "a"})
    slots.begin_load("b", "2")
    with pytest.raises(NoSlotFree, match="all 2 adapter slots"):
        slots.begin_load("c", "3")
    assert slots.get("c") is None


def test_a_live_adapter_is_not_unloaded_and_one_that_comes_or_goes_neither():
    slots = Slots(2)
    with pytest.raises(AdapterNotLoaded):
        slots.begin_unload("a")
    slots.begin_load("a", "1")
    with pytest.raises(AdapterDraining, match="being loaded"):
        slots.begin_unload("a")
    slots.end_load("a")
    slots.point({"llm/t/production": "a"})
    with pytest.raises(AdapterAliased, match="llm/t/production"):
        slots.begin_unload("a")
    slots.point({})
    slots.begin_unload("a")
    with pytest.raises(AdapterDraining, match="being unloaded"):
        slots.begin_unload("a")
    with pytest.raises(AdapterDraining):
        slots.begin_load("a", "1")


def test_pointing_tells_what_is_missing_and_marks_what_comes_later():
    slots = Slots(2)
    loaded(slots, "a")
    assert slots.point({"llm/t/production": "a", "llm/u/production": "b"}) == ["b"]
    loaded(slots, "b")
    assert states(slots) == {"a": State.LIVE, "b": State.LIVE}


def test_a_failed_load_leaves_its_slot_free():
    slots = Slots(1)
    slots.begin_load("a", "1")
    slots.fail_load("a")
    loading = slots.begin_load("b", "2")
    assert loading is not None and loading.evict is None
