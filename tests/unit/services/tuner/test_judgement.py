import pytest

from services.common.language.adapter_name import AdapterName
from services.common.language.evaluation import Evaluation, Question
from services.common.platform.errors import Unavailable
from services.tuner.adapter_gate import Candidate
from services.tuner.judgement import Judgement, in_order
from services.tuner.neighbours import Live
from services.tuner.tune_status import TuneStatus
from tests.tuner_fakes import EVALUATION, NAME, NUM_CONTEXT, NUM_TASK, RECIPE, TASK, World, manifest_of

SOUND = Candidate(losses=(0.1,), norms={"layer": 1.0}, replay_share=0.25)
LIVE = AdapterName("Base", TASK, 7)
NOTHING = Live("base", 0)


async def judge(world: World, *, live: Live = NOTHING, evaluation: Evaluation = EVALUATION) -> TuneStatus:
    world.store.manifests[str(NAME)] = manifest_of(NAME)
    world.control.now = live
    status = TuneStatus(tune_id="t", task=TASK, adapter=str(NAME))
    await Judgement(NAME, evaluation, RECIPE.judging, world.neighbours, status).run(SOUND, live)
    return status


def asked_of(world: World, adapter: str) -> list[str]:
    return [question for question, whom in world.serving.questions if whom == adapter]


async def test_a_plain_win_is_decided_by_the_first_batches_alone():
    world = World()
    assert (await judge(world)).phase == "live"
    assert len(asked_of(world, str(NAME))) < 200 < NUM_TASK + NUM_CONTEXT
    assert asked_of(world, str(NAME))[:32] == asked_of(world, "base")[:32]


async def test_more_is_asked_batch_after_batch_of_the_models_that_are_still_compared():
    world = World()
    world.serving.skills[str(LIVE)] = world.serving.default
    assert (await judge(world, live=Live(str(LIVE), 3))).phase == "live"
    assert len(asked_of(world, "base")) < len(asked_of(world, str(NAME))) == len(asked_of(world, str(LIVE)))
    assert len(set(asked_of(world, str(NAME)))) == len(asked_of(world, str(NAME))), "a question is asked once"


async def test_what_runs_out_of_questions_is_undecided_keeps_the_live_one_and_says_how_many_more():
    world = World()
    world.serving.skills[str(LIVE)] = world.serving.default
    few = Evaluation(task_slice=EVALUATION.task_slice[:40], context_slice=EVALUATION.context_slice[:40])
    status = await judge(world, live=Live(str(LIVE), 3), evaluation=few)
    assert (status.phase, world.control.now.target) == ("undecided", str(LIVE))
    verdict = world.store.verdicts[str(NAME)]
    assert (verdict.accepted, verdict.is_undecided, verdict.compared_with) == (False, True, str(LIVE))
    assert 20 < status.questions_needed == verdict.questions_needed < 200
    assert all(reason.startswith("not shown") for reason in status.refusals)
    assert world.serving.unloaded == [str(NAME)]


async def test_judged_twenty_times_there_is_one_verdict_and_one_order_of_questions():
    seen = set()
    for _ in range(20):
        world = World()
        world.serving.skills[str(LIVE)] = (175, 265)
        status = await judge(world, live=Live(str(LIVE), 3))
        seen.add((status.phase, tuple(status.metrics.items()), tuple(sorted(world.serving.questions))))
    assert len(seen) == 1


async def test_the_order_of_a_file_plays_no_part_and_every_slice_is_asked():
    assert in_order(EVALUATION.task_slice) == in_order(EVALUATION.task_slice[::-1]) != list(EVALUATION.task_slice)
    extra = tuple(Question(question=f"safe {number}?", accept=(("nine days",),)) for number in range(180))
    world = World()
    world.serving.skills["base"] = (180, 150)
    await judge(world, evaluation=Evaluation(task_slice=EVALUATION.task_slice, context_slice=EVALUATION.context_slice, safety_slice=extra))
    assert any(question.startswith("safe") for question in asked_of(world, str(NAME)))


async def test_likelihoods_are_asked_of_the_live_adapter_and_the_candidate_and_can_refuse():
    world = World()
    world.serving.skills[str(LIVE)] = world.serving.default
    world.serving.likelihoods = {str(LIVE): 0.9, str(NAME): 0.2}
    status = await judge(world, live=Live(str(LIVE), 3))
    assert status.phase == "refused"
    assert "0.20 against 0.90 probability of a token" in status.refusals[0]
    world = World()
    world.serving.skills[str(LIVE)] = world.serving.default
    world.serving.likelihoods = {str(LIVE): 0.9, str(NAME): 0.9}
    assert (await judge(world, live=Live(str(LIVE), 3))).phase == "live"


async def test_a_prompt_or_a_base_that_changes_in_the_middle_begins_the_judgement_anew():
    world = World()
    world.serving.prompt_versions = [*["answer@v1"] * 40, "answer@v2"]
    assert (await judge(world)).phase == "live"
    assert world.store.verdicts[str(NAME)].prompt_version == "answer@v2"
    world = World()
    world.serving.base_hashes = ["sha256:a", "sha256:b"]
    assert (await judge(world)).phase == "live"
    assert world.store.verdicts[str(NAME)].base_hash == "sha256:b"


async def test_a_prompt_that_goes_on_changing_decides_nothing_and_the_adapter_is_unloaded():
    world = World()
    world.serving.prompt_versions = ["answer@v1", "answer@v2"] * 500
    with pytest.raises(Unavailable, match="the prompt changed from answer@v"):
        await judge(world)
    assert world.store.verdicts == {}
    assert world.serving.unloaded == [str(NAME)]


async def test_an_alias_that_names_an_adapter_of_another_base_is_answered_by_the_base():
    world = World()
    status = await judge(world, live=Live("Former--helpdesk--v7", 3))
    assert (status.phase, world.control.now) == ("live", Live(str(NAME), 4))
    assert world.store.verdicts[str(NAME)].compared_with == "base"
    assert asked_of(world, "Former--helpdesk--v7") == []
