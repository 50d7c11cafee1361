import asyncio

import pytest

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict, Metric
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import NotFound, Unavailable
from services.tuner.job import Step
from services.tuner.mirror import Mirror, Reconciler

ONE, TWO = AdapterName("Base", "helpdesk", 1), AdapterName("Base", "helpdesk", 2)


class FakeRegistry:
    """MLflow in memory; `is_down` makes every call fail, `calls` counts them."""

    def __init__(self) -> None:
        self.runs: dict[str, AdapterName] = {}
        self.ended = {}
        self.versions: dict[AdapterName, tuple[str, str, dict]] = {}
        self.aliases: dict[str, str] = {}
        self.is_down = False
        self.unknown: set[str] = set()
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.is_down:
            raise Unavailable("MLflow is down")

    def begin_run(self, name, parameters) -> str:
        self._call()
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = name
        return run_id

    def find_run(self, name, run_id) -> str:
        self._call()
        return run_id if run_id in self.runs else next((run_id for run_id, of in self.runs.items() if of == name), "")

    def end_run(self, run_id, record) -> None:
        self._call()
        if run_id in self.unknown:
            raise NotFound(f"no run {run_id}")
        self.ended[run_id] = record

    def put_version(self, name, run_id, tags) -> str:
        self._call()
        version = self.versions[name][0] if name in self.versions else str(len(self.versions) + 1)
        self.versions[name] = (version, run_id, dict(tags))
        return version

    def point_alias(self, base, task, version) -> None:
        self._call()
        self.aliases[f"{base}--{task}"] = version


class World:
    def __init__(self, tmp_path) -> None:
        self.store, self.registry, self.aliases = AdapterStore(tmp_path / "artifacts"), FakeRegistry(), {}
        self._made = tmp_path / "made"
        self._made.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (self._made / file).write_text("{}")
        losses = [Step(step=1, loss=2.0, gradient_norm=1.0, seconds=0.1)]
        self.reconciler = Reconciler("Base", self.store, self.registry, aliases=lambda: self.aliases, losses=lambda name: losses)

    def publish(self, name: AdapterName, run_id: str = "") -> None:
        manifest = AdapterManifest(name=str(name), base_model=name.base, task=name.task, dataset_hash="sha256:d", mlflow_run_id=run_id)
        self.store.publish(name, self._made, manifest)

    def judge(self, name: AdapterName, *refusals: str) -> None:
        metrics = {"task.candidate": Metric(value=0.9, low=0.8, high=1.0, num_samples=30)}
        self.store.write_verdict(AdapterVerdict(name=str(name), accepted=not refusals, refusals=refusals, metrics=metrics))


def test_an_adapter_becomes_a_run_and_a_version_and_its_verdict_ends_the_run(tmp_path):
    world = World(tmp_path)
    world.publish(ONE)
    world.reconciler.reconcile()
    assert world.registry.versions[ONE][2]["tunemesh.verdict"] == "none yet"
    assert world.registry.ended == {}
    world.judge(ONE, "it forgot to read")
    world.reconciler.reconcile()
    version, run_id, tags = world.registry.versions[ONE]
    assert (version, tags["tunemesh.verdict"], tags["tunemesh.refusals"]) == ("1", "refused", "it forgot to read")
    record = world.registry.ended[run_id]
    assert record.metrics == {"task.candidate": 0.9, "task.candidate.low": 0.8, "task.candidate.high": 1.0}
    assert [step.loss for step in record.losses] == [2.0]
    assert len(world.registry.runs) == 1


def test_a_run_that_began_with_the_tune_is_used_again(tmp_path):
    world = World(tmp_path)
    begun = world.registry.begin_run(ONE, {})
    world.publish(ONE)
    world.reconciler.reconcile()
    assert world.registry.versions[ONE][1] == begun


def test_the_run_that_the_manifest_names_is_used_before_another_of_the_same_name(tmp_path):
    world = World(tmp_path)
    failed, begun = world.registry.begin_run(ONE, {}), world.registry.begin_run(ONE, {})
    world.publish(ONE, run_id=begun)
    world.reconciler.reconcile()
    assert failed != begun == world.registry.versions[ONE][1]


def test_what_mlflow_will_not_take_is_said_and_holds_up_nothing_else(tmp_path, caplog):
    world = World(tmp_path)
    lost = world.registry.begin_run(ONE, {})
    world.registry.unknown.add(lost)
    for name in (ONE, TWO):
        world.publish(name)
        world.judge(name)
    world.reconciler.note_failure(lost, "out of room")
    world.reconciler.reconcile()
    assert [world.registry.runs[run_id] for run_id in world.registry.ended] == [TWO]
    assert f"adapter {ONE} is not mirrored: no run {lost}" in caplog.text
    assert f"run {lost} of a failed tune is not ended" in caplog.text


def test_the_alias_follows_control_forward_back_and_to_the_base(tmp_path):
    world = World(tmp_path)
    for name in (ONE, TWO):
        world.publish(name)
        world.judge(name)
    for target, version in ((str(ONE), "1"), (str(TWO), "2"), (str(ONE), "1"), ("base", "")):
        world.aliases = {"llm/helpdesk/production": target, "prompt/answer/production": "v2", "llm/other/production": "Other--other--v1"}
        world.reconciler.reconcile()
        assert world.registry.aliases == {"Base--helpdesk": version}


def test_nothing_is_written_twice(tmp_path):
    world = World(tmp_path)
    world.publish(ONE)
    world.judge(ONE)
    world.aliases = {"llm/helpdesk/production": str(ONE)}
    world.reconciler.reconcile()
    calls = world.registry.calls
    world.reconciler.reconcile()
    assert world.registry.calls == calls


def test_adapters_of_another_base_are_left_alone(tmp_path):
    world = World(tmp_path)
    world.publish(AdapterName("Other", "helpdesk", 1))
    world.reconciler.reconcile()
    assert world.registry.calls == 0


def test_the_run_of_a_failed_tune_is_ended_as_failed_once_mlflow_is_there(tmp_path):
    world = World(tmp_path)
    world.registry.is_down = True
    world.reconciler.note_failure("run-7", "out of room")
    with pytest.raises(Unavailable):
        world.reconciler.reconcile()
    world.registry.is_down = False
    world.reconciler.reconcile()
    world.reconciler.reconcile()
    assert world.registry.ended["run-7"].failure == "out of room"


def test_a_damaged_adapter_is_said_once_and_holds_up_no_other(tmp_path, caplog):
    world = World(tmp_path)
    for name in (ONE, TWO):
        world.publish(name)
    (tmp_path / "artifacts" / "adapters" / str(ONE) / "manifest.json").write_text("[]")
    world.reconciler.reconcile()
    world.reconciler.reconcile()
    assert list(world.registry.versions) == [TWO]
    assert caplog.text.count(f"adapter {ONE} is not mirrored") == 1


async def test_mlflow_may_be_down_and_catches_up(tmp_path, caplog):
    caplog.set_level("INFO")
    world = World(tmp_path)
    world.registry.is_down = True
    mirror = Mirror(world.reconciler, world.registry, retry_s=0.02)
    assert await mirror.begin(ONE, {}) == ""
    world.publish(ONE)
    world.judge(ONE)
    world.aliases = {"llm/helpdesk/production": str(ONE)}
    running = asyncio.create_task(mirror.run())
    mirror.changed()
    while world.registry.calls < 4:
        await asyncio.sleep(0.01)
    world.registry.is_down = False
    while world.registry.aliases != {"Base--helpdesk": "1"}:
        await asyncio.sleep(0.01)
    assert await mirror.begin(TWO, {}) == "run-1"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("MLflow does not have everything yet") == 1
    assert "MLflow has caught up" in caplog.text


def test_an_undecided_verdict_is_mirrored_and_so_is_the_one_that_comes_after_it(tmp_path):
    world = World(tmp_path)
    world.publish(ONE)
    world.store.write_verdict(AdapterVerdict(name=str(ONE), accepted=False, is_undecided=True, refusals=("not shown yet",)))
    world.reconciler.reconcile()
    assert world.registry.versions[ONE][2]["tunemesh.verdict"] == "undecided"
    calls = world.registry.calls
    world.reconciler.reconcile()
    assert world.registry.calls == calls, "nothing new, nothing written"
    world.judge(ONE)
    world.reconciler.reconcile()
    assert world.registry.versions[ONE][2]["tunemesh.verdict"] == "accepted"
