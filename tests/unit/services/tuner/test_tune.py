import asyncio
import math
from dataclasses import replace

import pytest

from services.common.events.chat import Passage
from services.common.platform.errors import Conflict, Unavailable
from services.tuner.neighbours import Live, TrainingFailed
from services.tuner.replay import ReplayExample
from services.tuner.tune import Collected, Tune
from services.tuner.tune_status import TuneStatus
from tests.tuner_fakes import BASE, EVALUATION, NAME, RECIPE, TASK, FakeReplay, World, demonstrations


async def run(world: World, *, recipe=RECIPE, evaluation=EVALUATION, examples=None) -> TuneStatus:
    collected = Collected(task=TASK, demonstrations=tuple(examples or demonstrations()), evaluation=evaluation, actor="me")
    status = TuneStatus(tune_id="t", task=TASK, adapter=str(NAME))
    await Tune(BASE, NAME, collected, recipe, world.neighbours, status).run()
    return status


async def test_a_good_tune_goes_live_and_leaves_manifest_verdict_and_run():
    world = World()
    status = await run(world)
    assert (status.phase, status.refusals, status.error) == ("live", [], "")
    assert world.control.now == Live(str(NAME), 1)
    manifest, verdict = world.store.manifests[str(NAME)], world.store.verdicts[str(NAME)]
    assert (manifest.parent, manifest.replay_share, manifest.num_examples, manifest.created_at_ms) == ("", 0.25, 20, 5_000)
    assert manifest.mlflow_run_id == status.mlflow_run_id == f"run of {NAME}"
    assert manifest.dataset_hash == world.mirror.begun[str(NAME)]["dataset_hash"]
    assert manifest.hyper_parameters["num_steps"] == len(world.tuning.jobs[0].batches) == status.num_steps == 20
    assert verdict.accepted
    assert verdict.compared_with == "base"
    assert (verdict.outcome, verdict.prompt_version, verdict.base_hash) == ("accepted", "answer@v1", "sha256:base")
    assert verdict.metrics["task.candidate"].value == status.metrics["task.candidate"] > 0.8
    assert status.metrics["context.base"] == status.metrics["context.live"] > 0.4
    assert world.serving.unloaded == []
    assert world.serving.most_at_once <= RECIPE.judging.concurrency


async def test_replay_prompts_are_the_assemblers_and_name_no_film_of_the_evaluation():
    world = World()
    world.replay = FakeReplay([*FakeReplay()._items, replace(FakeReplay()._items[0], item_id="e", title="Evaluated 3 (1995)")])
    await run(world)
    replay = [example for example in world.tuning.jobs[0].examples if example.is_replay]
    assert len(replay) == RECIPE.replay_examples
    assert all(example.messages[0].content == f"for {TASK}" for example in replay)
    assert not any("Evaluated" in example.messages[1].content for example in replay)


async def test_a_replay_file_takes_the_place_of_the_catalogue():
    world = World()
    world.replay = FakeReplay([], given=[ReplayExample(question="own?", passages=(Passage("t", "x"),), answer="own")])
    assert (await run(world)).phase == "live"
    assert {example.answer for example in world.tuning.jobs[0].examples if example.is_replay} == {"own"}


async def test_a_tune_that_forgot_to_read_is_refused_kept_and_unloaded():
    world = World()
    world.serving.default = (180, 20)
    status = await run(world, recipe=replace(RECIPE, replay_share=0.0))
    assert status.phase == "refused"
    assert [sentence.split(",")[0] for sentence in status.refusals][:1] == [
        "0.00 of what it was trained on are context-answering examples (replay)"
    ]
    assert any(sentence.startswith("answers from given context are worse than the base's: 0.") for sentence in status.refusals)
    assert world.control.now.version == 0
    assert world.store.verdicts[str(NAME)].refusals == tuple(status.refusals)
    assert world.serving.loaded == world.serving.unloaded == [str(NAME)]


async def test_unsound_weights_are_never_loaded():
    world = World()
    world.tuning.result = replace(world.tuning.result, norms={"layer": math.nan})
    status = await run(world)
    assert status.phase == "refused"
    assert status.refusals == ["the weights of 1 of 1 layers hold NaN or infinity, e.g. layer"]
    assert world.serving.loaded == []
    assert not world.store.verdicts[str(NAME)].accepted


async def test_demonstrations_of_held_out_questions_are_left_out_and_counted():
    world = World()
    leaks = [
        replace(demonstrations(1)[0], example_id=f"leak {i}", question=text) for i, text in enumerate(("Held out 3?", "from when is 4"))
    ]
    status = await run(world, examples=[*demonstrations(), *leaks])
    assert status.phase == "live"
    assert sum(not example.is_replay for example in world.tuning.jobs[0].examples) == 20
    assert world.store.manifests[str(NAME)].num_examples == 20
    assert world.mirror.begun[str(NAME)]["num_held_out_demonstrations"] == "2"


async def test_demonstrations_that_are_all_held_out_refuse_the_tune_before_it_costs_anything():
    world = World()
    status = await run(world, examples=[replace(demonstrations(1)[0], question="Held out 3?")])
    assert status.phase == "refused"
    assert status.refusals == [
        "each demonstration repeats a held-out question of the evaluation: there is nothing that could be learned from"
    ]
    assert world.tuning.jobs == []


async def test_a_replay_file_does_not_rehearse_what_is_judged():
    world = World()
    passages = (Passage("t", "x"),)
    rows = [ReplayExample(question=question, passages=passages, answer=question) for question in ("own?", "From when is 7?")]
    world.replay = FakeReplay([], given=rows)
    await run(world)
    assert {example.answer for example in world.tuning.jobs[0].examples if example.is_replay} == {"own?"}


async def test_examples_that_were_too_long_count_neither_as_demonstrations_nor_as_replay():
    world = World()
    world.tuning.result = replace(world.tuning.result, left_out=(0, 1, *range(20, 40)))
    status = await run(world)
    manifest = world.store.manifests[str(NAME)]
    assert (manifest.num_examples, manifest.replay_share) == (18, 0.0)
    assert status.phase == "refused"
    assert "0.00 of what it was trained on are context-answering examples" in status.refusals[0]


async def test_the_live_adapter_is_measured_beside_the_base_and_becomes_the_parent():
    world = World()
    world.control.now = Live("Base--helpdesk--v0x", 4)
    world.serving.skills["Base--helpdesk--v0x"] = (40, 200)
    status = await run(world)
    assert status.phase == "live"
    assert 0.1 < status.metrics["task.live"] < 0.3
    assert 0.55 < status.metrics["context.live"] < 0.8
    assert world.store.manifests[str(NAME)].parent == "Base--helpdesk--v0x"
    assert world.control.now == Live(str(NAME), 5)


async def test_a_conflict_on_the_alias_fails_the_tune_and_frees_the_slot():
    world = World()

    async def refuse(task, name, expected_version) -> None:
        raise Conflict("llm/helpdesk/production was moved to another")

    world.control.set_live = refuse
    status = await run(world)
    assert (status.phase, status.error) == ("failed", "llm/helpdesk/production was moved to another")
    assert world.serving.unloaded == [str(NAME)]


@pytest.mark.parametrize(
    ("breakage", "published"),
    [
        (lambda world: setattr(world.tuning, "failure", TrainingFailed("exit code -9")), False),
        (lambda world: setattr(world.serving, "load_failure", Unavailable("exit code -9")), True),
        (lambda world: setattr(world.serving, "answer_failure", Unavailable("exit code -9")), True),
    ],
)
async def test_whatever_breaks_fails_the_tune_with_its_reason_and_moves_no_alias(breakage, published):
    world = World()
    breakage(world)
    status = await run(world)
    assert (status.phase, status.error) == ("failed", "exit code -9")
    assert world.control.now.version == 0
    assert bool(world.store.manifests) is published
    assert world.store.verdicts == {}
    assert world.mirror.failures == [(f"run of {NAME}", "exit code -9")]
    assert world.serving.unloaded == world.serving.loaded


async def test_a_defect_fails_one_tune_and_not_the_tuner():
    world = World()
    world.tuning.failure = ZeroDivisionError("defect")
    assert (await run(world)).error == "ZeroDivisionError: defect"


async def test_a_tune_that_is_stopped_has_failed_and_its_training_is_killed():
    world = World()
    world.tuning.hold = asyncio.Event()
    collected = Collected(task=TASK, demonstrations=tuple(demonstrations()), evaluation=EVALUATION, actor="me")
    status = TuneStatus(tune_id="t", task=TASK, adapter=str(NAME))
    task = asyncio.create_task(Tune(BASE, NAME, collected, RECIPE, world.neighbours, status).run())
    while not world.tuning.jobs:
        await asyncio.sleep(0)
    assert (status.phase, status.step, status.loss) == ("training", 2, 0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (status.phase, status.error) == ("failed", "the tuner was stopped")
    assert world.tuning.was_killed


async def test_without_catalogue_and_file_the_tasks_own_grounded_demonstrations_are_rehearsed():
    world = World()
    world.replay = FakeReplay([])
    status = await run(world)
    assert (status.phase, status.error[:27]) == ("failed", "there are no replay example")
    examples = [replace(one, is_grounded=number < 5, answer=f"read {number}") for number, one in enumerate(demonstrations())]
    assert (await run(world, examples=examples)).phase == "live"
    assert {one.answer for one in world.tuning.jobs[0].examples if one.is_replay} == {f"read {number}" for number in range(5)}


async def test_replay_is_asked_in_the_language_of_the_task():
    world = World()
    examples = [replace(one, question="您最多可以保留几天？", answer="您最多可以保留九天。") for one in demonstrations()]
    assert (await run(world, examples=examples)).phase == "live"
    questions = [one.messages[1].content for one in world.tuning.jobs[0].examples if one.is_replay]
    assert not any("Which" in question for question in questions)


async def test_what_is_live_when_the_training_ends_is_what_it_is_compared_with():
    world = World()
    world.tuning.hold = asyncio.Event()
    running = asyncio.create_task(run(world))
    while not world.tuning.jobs:
        await asyncio.sleep(0)
    world.control.now = Live("Base--helpdesk--v5", 8)
    world.serving.skills["Base--helpdesk--v5"] = (0, 150)
    world.tuning.hold.set()
    assert (await running).phase == "live"
    assert world.store.verdicts[str(NAME)].compared_with == "Base--helpdesk--v5"
    assert world.control.now == Live(str(NAME), 9)
