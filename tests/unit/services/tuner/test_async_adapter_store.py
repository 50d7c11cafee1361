from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.tuner.async_adapter_store import AsyncAdapterStore


async def test_the_newest_tune_of_a_task_that_was_decided_about_is_known_from_the_store(tmp_path):
    (tmp_path / "made").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "made" / file).write_text("{}")
    store = AdapterStore(tmp_path / "artifacts")
    history = AsyncAdapterStore(store)
    assert await history.newest_decided_tune_ms("Base", "helpdesk") == 0
    for version, created_at_ms in ((1, 100), (2, 200), (3, 300)):
        name = AdapterName("Base", "helpdesk", version)
        manifest = AdapterManifest(name=str(name), base_model="Base", task="helpdesk", created_at_ms=created_at_ms)
        await history.publish(name, str(tmp_path / "made"), manifest)
        if version < 3:
            await history.write_verdict(AdapterVerdict(name=str(name), accepted=False, decided_at_ms=created_at_ms))
    assert await history.newest_decided_tune_ms("Base", "helpdesk") == 200
    assert await history.newest_decided_tune_ms("Other", "helpdesk") == 0
    assert await history.next_name("Base", "helpdesk") == AdapterName("Base", "helpdesk", 4)
