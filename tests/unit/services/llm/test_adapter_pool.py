"""The pool carries out what the slots decide: on a real store, with an engine that is a fake."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName, BadAdapterName
from services.common.language.aliases import BASE_MODEL
from services.common.language.lora_store import AdapterNotFound, AdapterStore
from services.common.platform.errors import Unavailable
from services.llm.adapter_pool import AdapterPool, AdapterUnusable, WrongBase
from services.llm.core.slots import AdapterAliased, AdapterNotLoaded, NameTaken, NoSlotFree, Slots, State
from tests.limits import seconds
from tests.llm_fakes import FakeEngine


def publish(store: AdapterStore, tmp_path: Path, *names: str) -> None:
    for name in names:
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(name.encode())
        parsed = AdapterName.parse(name)
        store.publish(name, folder, AdapterManifest(name=name, base_model=parsed.base, task=parsed.task))


@pytest.fixture
def store(tmp_path) -> AdapterStore:
    store = AdapterStore(tmp_path / "artifacts")
    publish(store, tmp_path, "base--t--v1", "base--t--v2", "base--t--v3", "base--u--v1", "other--t--v1")
    return store


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def pool(store, engine, tmp_path) -> AdapterPool:
    return AdapterPool(Slots(2), store, engine, base_model="base", folder=tmp_path / "fetched", remove=shutil.rmtree)


def states(pool: AdapterPool) -> dict[str, State]:
    return {slot.name: slot.state for slot in pool.adapters}


async def test_a_loaded_adapter_is_warmed_before_it_serves(pool, engine, tmp_path):
    slot = await pool.load("base--t--v1")
    assert (slot.state, engine.loaded, engine.warmed) == (State.WARM, [slot.lora_id], ["base--t--v1"])
    with pool.lease("base--t--v1") as adapter:
        assert (Path(adapter.folder) / "adapter_model.safetensors").read_bytes() == b"base--t--v1"
        assert pool.adapters[0].running == 1
    assert pool.adapters[0].running == 0


async def test_loading_again_is_harmless_and_two_at_once_load_it_once(pool, engine):
    await asyncio.gather(pool.load("base--t--v1"), pool.load("base--t--v1"))
    await pool.load("base--t--v1")
    assert len(engine.loaded) == 1


async def test_a_load_goes_on_when_its_caller_hangs_up(pool, engine):
    engine.gate.clear()
    call = asyncio.create_task(pool.load("base--t--v1"))
    while not pool.adapters:
        await asyncio.sleep(0.001)
    call.cancel()
    engine.gate.set()
    assert (await pool.load("base--t--v1")).state is State.WARM
    assert len(engine.loaded) == 1


async def test_what_cannot_be_loaded_is_refused_with_its_reason(pool, store, tmp_path, engine):
    with pytest.raises(BadAdapterName):
        await pool.load("../x")
    with pytest.raises(AdapterNotFound):
        await pool.load("base--t--v9")
    with pytest.raises(WrongBase, match="made for other; this process serves base"):
        await pool.load("other--t--v1")
    (tmp_path / "artifacts" / "adapters" / "base--t--v2" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterUnusable, match="is damaged"):
        await pool.load("base--t--v2")
    engine.refuses = AdapterUnusable
    with pytest.raises(AdapterUnusable):
        await pool.load("base--t--v1")
    assert (pool.adapters, engine.loaded) == ([], [])


async def test_a_name_with_new_content_is_refused(pool, store, tmp_path):
    await pool.load("base--t--v1")
    shutil.rmtree(tmp_path / "artifacts" / "adapters" / "base--t--v1")
    shutil.rmtree(tmp_path / "made")
    (tmp_path / "artifacts" / "x").mkdir()
    folder = tmp_path / "made" / "again"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"other content")
    store.publish("base--t--v1", folder, AdapterManifest(name="base--t--v1", base_model="base", task="t"))
    with pytest.raises(NameTaken):
        await pool.load("base--t--v1")
    assert states(pool) == {"base--t--v1": State.WARM}


async def test_an_unload_waits_for_the_running_requests_and_takes_no_new_ones(pool, engine, tmp_path):
    await pool.load("base--t--v1")
    with pool.lease("base--t--v1"):
        unloading = asyncio.create_task(pool.unload("base--t--v1"))
        await asyncio.sleep(0.01)
        assert states(pool) == {"base--t--v1": State.DRAINING}
        with pytest.raises(AdapterNotLoaded), pool.lease("base--t--v1"):
            pass
        assert engine.loaded != []
    await unloading
    assert (pool.adapters, engine.loaded, list((tmp_path / "fetched").iterdir())) == ([], [], [])


async def test_a_third_adapter_takes_the_slot_of_the_one_whose_alias_is_longest_ago(pool, engine):
    await pool.load("base--t--v1")
    pool.point({"llm/t/production": "base--t--v1"})
    await pool.load("base--t--v2")
    pool.point({"llm/t/production": "base--t--v2"})
    assert states(pool) == {"base--t--v1": State.WARM, "base--t--v2": State.LIVE}
    await pool.load("base--t--v3")
    assert states(pool) == {"base--t--v2": State.LIVE, "base--t--v3": State.WARM}
    assert len(engine.loaded) == 2
    with pytest.raises(AdapterAliased):
        await pool.unload("base--t--v2")


async def test_without_a_free_slot_nothing_is_unloaded(pool):
    pool.point({"llm/t/production": "base--t--v1", "llm/u/production": "base--t--v2"})
    await pool.load("base--t--v1")
    await pool.load("base--t--v2")
    with pytest.raises(NoSlotFree):
        await pool.load("base--t--v3")
    assert len(pool.adapters) == 2


def test_only_aliases_of_adapters_count(store, tmp_path):
    pool = AdapterPool(Slots(2), store, FakeEngine(), base_model="base", folder=tmp_path, remove=shutil.rmtree)
    assert pool.point({"llm/t/production": BASE_MODEL, "prompt/answer/production": "v2", "llm/u/production": "base--t--v1"}) == [
        "base--t--v1"
    ]


async def until(condition) -> None:
    async with asyncio.timeout(seconds(20)):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_aliases_point_at_is_loaded_at_the_start_and_after_each_change(pool):
    targets = {"llm/t/production": "base--t--v1"}
    changed, first = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(pool.keep_up(lambda: targets, changed, first))
    await asyncio.wait_for(first.wait(), seconds(20))
    assert states(pool) == {"base--t--v1": State.LIVE}
    targets["llm/t/production"] = "base--t--v2"
    changed.set()
    await until(lambda: states(pool) == {"base--t--v1": State.WARM, "base--t--v2": State.LIVE})
    targets["llm/t/production"] = "base--t--v1"
    changed.set()
    await until(lambda: states(pool) == {"base--t--v1": State.LIVE, "base--t--v2": State.WARM})
    task.cancel()


async def test_an_alias_that_goes_back_to_an_adapter_on_its_way_out_brings_it_back(pool, monkeypatch):
    monkeypatch.setattr("services.llm.adapter_pool._FIRST_RETRY_S", 0.01)
    targets = {"llm/t/production": "base--t--v2"}
    changed, first = asyncio.Event(), asyncio.Event()
    await pool.load("base--t--v1")
    task = asyncio.create_task(pool.keep_up(lambda: targets, changed, first))
    await asyncio.wait_for(first.wait(), seconds(20))
    with pool.lease("base--t--v1"):
        unloading = asyncio.create_task(pool.unload("base--t--v1"))
        await until(lambda: states(pool)["base--t--v1"] is State.DRAINING)
        targets["llm/t/production"] = "base--t--v1"
        changed.set()
        await until(lambda: pool.adapters[0].aliases == ("llm/t/production",))
        assert states(pool)["base--t--v1"] is State.DRAINING  # its request runs on; it comes back only once it is out
    await unloading
    await until(lambda: "base--t--v1" in states(pool) and states(pool)["base--t--v1"] is State.LIVE)
    assert states(pool) == {"base--t--v1": State.LIVE, "base--t--v2": State.WARM}
    with pool.lease("base--t--v1") as adapter:
        assert adapter.lora_id == 3  # loaded anew, after v1 and v2
    task.cancel()


async def test_an_adapter_that_is_not_there_yet_is_tried_again_and_one_of_another_base_is_not(pool, store, tmp_path, monkeypatch):
    monkeypatch.setattr("services.llm.adapter_pool._FIRST_RETRY_S", 0.01)
    targets = {"llm/t/production": "base--late--v1", "llm/u/production": "other--t--v1", "llm/v/production": "nonsense"}
    first = asyncio.Event()
    task = asyncio.create_task(pool.keep_up(lambda: targets, asyncio.Event(), first))
    await asyncio.wait_for(first.wait(), seconds(20))
    assert pool.adapters == []
    publish(store, tmp_path, "base--late--v1")
    await until(lambda: states(pool) == {"base--late--v1": State.LIVE})
    task.cancel()


async def test_one_task_that_waits_for_a_long_answer_keeps_no_other_waiting(pool):
    targets = {"llm/t/production": "base--t--v1"}
    changed, first = asyncio.Event(), asyncio.Event()
    await pool.load("base--t--v2")
    task = asyncio.create_task(pool.keep_up(lambda: targets, changed, first))
    await asyncio.wait_for(first.wait(), seconds(20))
    with pool.lease("base--t--v2"):
        targets["llm/t/canary"] = "base--t--v3"  # takes the slot of v2, whose answer runs on
        changed.set()
        await until(lambda: states(pool).get("base--t--v2") is State.DRAINING)
        del targets["llm/t/production"]
        changed.set()
        await until(lambda: states(pool)["base--t--v1"] is State.WARM)
        targets["llm/u/production"] = "base--u--v1"  # takes the slot of v1, which is idle
        changed.set()
        await until(lambda: states(pool).get("base--u--v1") is State.LIVE)
        assert states(pool)["base--t--v3"] is State.LOADING
    await until(lambda: states(pool) == {"base--t--v3": State.LIVE, "base--u--v1": State.LIVE})
    task.cancel()


async def test_an_adapter_that_is_not_there_is_tried_again_while_another_loads(pool, store, tmp_path, monkeypatch):
    monkeypatch.setattr("services.llm.adapter_pool._FIRST_RETRY_S", 0.01)
    targets = {"llm/t/production": "base--late--v1"}
    await pool.load("base--t--v1")
    await pool.load("base--t--v2")
    with pool.lease("base--t--v1"), pool.lease("base--t--v2"):
        targets["llm/u/production"] = "base--u--v1"
        task = asyncio.create_task(pool.keep_up(lambda: targets, asyncio.Event(), asyncio.Event()))
        await until(lambda: states(pool).get("base--u--v1") is State.LOADING)
        publish(store, tmp_path, "base--late--v1")
        await until(lambda: "base--late--v1" in states(pool))
        assert states(pool)["base--u--v1"] is State.LOADING, "it still waits, and kept nobody else waiting"
    await until(lambda: states(pool) == {"base--late--v1": State.LIVE, "base--u--v1": State.LIVE})
    task.cancel()


async def test_folders_of_earlier_processes_go_unless_an_alias_wants_them(pool, tmp_path):
    await pool.remove_leftovers({})
    for name in ("base--t--v1", "base--t--v2", "notes"):
        (tmp_path / "fetched" / name).mkdir(parents=True)
    await pool.remove_leftovers({"llm/t/production": "base--t--v2"})
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["base--t--v2", "notes"]


async def test_an_adapter_that_the_engine_does_not_take_leaves_no_folder(pool, engine, tmp_path):
    engine.refuses = AdapterUnusable
    with pytest.raises(AdapterUnusable):
        await pool.load("base--t--v1")
    assert list((tmp_path / "fetched").iterdir()) == []


async def test_a_disk_that_takes_no_adapter_is_no_reason_to_end(store, engine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    pool = AdapterPool(Slots(2), store, engine, base_model="base", folder=tmp_path / "file" / "x", remove=shutil.rmtree)
    with pytest.raises(Unavailable, match="cannot be kept"):
        await pool.load("base--t--v1")
    assert pool.adapters == []


async def test_a_load_of_somebody_else_that_fails_is_tried_again_for_the_alias_that_came_meanwhile(pool, engine, monkeypatch):
    monkeypatch.setattr("services.llm.adapter_pool._FIRST_RETRY_S", 0.01)
    engine.gate.clear()
    call = asyncio.create_task(pool.load("base--t--v1"))
    await until(lambda: states(pool) == {"base--t--v1": State.LOADING})
    task = asyncio.create_task(pool.keep_up(lambda: {"llm/t/production": "base--t--v1"}, asyncio.Event(), asyncio.Event()))
    await until(lambda: pool.adapters[0].aliases == ("llm/t/production",))
    engine.refuses = Unavailable
    engine.gate.set()
    with pytest.raises(Unavailable):
        await call
    engine.refuses = None
    await until(lambda: states(pool) == {"base--t--v1": State.LIVE})
    task.cancel()
