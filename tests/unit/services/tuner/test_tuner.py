import asyncio
from dataclasses import replace

import pytest

from services.common.language.adapter_manifest import AdapterManifest
from services.common.language.adapter_name import AdapterName
from services.common.platform.errors import Conflict, InvalidInput, NotFound, Unavailable
from tests.tuner_fakes import TASK, Desk, demonstrations


async def test_a_started_tune_can_be_watched_until_it_is_live():
    desk = Desk()
    status = await desk.tuner.start(TASK, "me")
    assert (status.tune_id, status.adapter, desk.tuner.running_tune_id) == ("tune-0", "Base--helpdesk--v1", "tune-0")
    await desk.finish()
    assert desk.tuner.get("tune-0").phase == "live"
    assert [one.phase for one in desk.ended] == ["live"]


async def test_one_tune_runs_at_a_time():
    desk = Desk()
    desk.tuning.hold = asyncio.Event()
    outcomes = await asyncio.gather(desk.tuner.start(TASK, "a"), desk.tuner.start(TASK, "b"), return_exceptions=True)
    assert isinstance(outcomes[1], Conflict)
    assert str(outcomes[1]) == "tune tune-0 of task 'helpdesk' is running"
    desk.tuning.hold.set()
    await desk.finish()
    assert (await desk.tuner.start(TASK, "b")).adapter == "Base--helpdesk--v2"
    await desk.tuner.stop()


async def test_below_the_thresholds_nothing_starts_and_the_threshold_is_named():
    desk = Desk(19)
    with pytest.raises(Conflict, match="19 demonstrations are there and 20 are needed"):
        await desk.tuner.start(TASK, "me")
    desk.add(1)
    desk.evaluations.tasks.clear()
    with pytest.raises(Conflict, match=r"there is no evaluation file /evaluations/helpdesk\.yaml"):
        await desk.tuner.start(TASK, "me")
    assert desk.tuner.tasks()[TASK].waiting_for == "there is no evaluation file /evaluations/helpdesk.yaml"


@pytest.mark.parametrize(("task", "actor"), [("../etc", "me"), ("", "me"), ("A", "me"), (TASK, ""), (TASK, "x" * 257)])
async def test_a_malformed_request_is_refused(task, actor):
    with pytest.raises(InvalidInput):
        await Desk().tuner.start(task, actor)


async def test_an_unknown_tune_is_not_found():
    with pytest.raises(NotFound, match="knows no tune 'x'"):
        Desk().tuner.get("x")


async def test_a_tune_begins_by_itself_once_enough_is_new():
    desk = Desk()
    assert (await desk.tuner.start_due()).adapter == "Base--helpdesk--v1"
    await desk.finish()
    assert await desk.tuner.start_due() is None
    desk.add(9, created_at_ms=6_000)
    assert await desk.tuner.start_due() is None
    desk.add(1, created_at_ms=6_000)
    desk.now_ms = 7_000
    assert (await desk.tuner.start_due()).adapter == "Base--helpdesk--v2"
    await desk.finish()


async def test_a_failed_tune_is_tried_again_later_and_later():
    desk = Desk()
    desk.tuning.failure = Unavailable("no room")
    for pause_ms in (1_000, 2_000, 4_000):
        assert await desk.tuner.start_due() is not None
        await desk.finish()
        assert desk.ended[-1].phase == "failed"
        desk.now_ms += pause_ms - 1
        assert await desk.tuner.start_due() is None
        desk.now_ms += 1
    desk.tuning.failure = None
    assert await desk.tuner.start_due() is not None
    await desk.finish()
    assert desk.ended[-1].phase == "live"
    desk.now_ms += 1_000_000
    assert await desk.tuner.start_due() is None


async def test_a_refused_tune_waits_for_new_demonstrations():
    desk = Desk()
    desk.tuning.result = replace(desk.tuning.result, norms={})
    await desk.tuner.start_due()
    await desk.finish()
    assert desk.ended[0].phase == "refused"
    desk.now_ms += 1_000_000
    assert await desk.tuner.start_due() is None


async def test_what_an_earlier_process_tuned_is_not_new():
    desk = Desk()
    desk.store.newest_ms = 1_000
    assert await desk.tuner.start_due() is None
    desk.add(10, created_at_ms=1_001)
    assert await desk.tuner.start_due() is not None
    await desk.finish()


async def test_while_learning_is_paused_none_begins_by_itself():
    desk = Desk()
    desk.control.paused = True
    assert await desk.tuner.is_paused()
    assert await desk.tuner.start_due() is None
    desk.control.paused = False
    assert await desk.tuner.start_due() is not None
    await desk.finish()


async def test_an_evaluation_file_that_cannot_be_read_is_said_and_keeps_no_other_task_waiting():
    desk = Desk()
    desk.evaluations.failure = InvalidInput("helpdesk.yaml: task_slice")
    with pytest.raises(InvalidInput, match="task_slice"):
        await desk.tuner.start_due()
    assert desk.tuner.running_tune_id == ""
    desk.add(20, task="shipping")
    desk.evaluations.tasks.add("shipping")
    status = await desk.tuner.start_due()
    assert status is not None
    assert status.task == "shipping"
    await desk.finish()


async def test_a_stop_ends_the_running_tune_as_failed():
    desk = Desk()
    desk.tuning.hold = asyncio.Event()
    status = await desk.tuner.start(TASK, "me")
    while not desk.tuning.jobs:
        await asyncio.sleep(0)
    await desk.tuner.stop()
    assert (status.phase, desk.tuning.was_killed) == ("failed", True)


async def test_only_the_last_hundred_tunes_are_remembered():
    desk = Desk()
    desk.tuning.failure = Unavailable("no room")
    for _ in range(101):
        await desk.tuner.start(TASK, "me")
        await desk.finish()
    with pytest.raises(NotFound):
        desk.tuner.get("tune-0")
    assert desk.tuner.get("tune-1").phase == "failed"


async def test_a_judgement_that_a_service_cut_short_is_repeated_without_a_second_training():
    desk = Desk()
    desk.serving.answer_failure = Unavailable("the llm restarts")
    await desk.tuner.start_due()
    await desk.finish()
    assert (desk.ended[0].phase, desk.ended[0].error) == ("failed", "the llm restarts")
    assert await desk.tuner.start_due() is None, "not before the pause is over"
    desk.now_ms += 1_000
    await desk.tuner.start_due()
    await desk.finish()
    assert desk.ended[1].phase == "failed"
    desk.serving.answer_failure = None
    desk.now_ms += 2_000
    status = await desk.tuner.start_due()
    await desk.finish()
    assert (status.phase, status.adapter, len(desk.tuning.jobs)) == ("live", "Base--helpdesk--v1", 1)
    desk.now_ms += 1_000_000
    assert await desk.tuner.start_due() is None, "its demonstrations are not new any more"
    desk.add(10, created_at_ms=desk.now_ms)
    assert await desk.tuner.start_due() is not None
    await desk.finish()


@pytest.mark.parametrize(
    "failure", [Conflict("all 4 adapter slots are taken"), NotFound("adapter is not loaded"), InvalidInput("too long")]
)
async def test_whatever_cuts_a_judgement_short_costs_no_second_training(failure):
    desk = Desk()
    desk.serving.answer_failure = failure
    await desk.tuner.start_due()
    await desk.finish()
    desk.serving.answer_failure = None
    desk.now_ms += 1_000
    status = await desk.tuner.start_due()
    await desk.finish()
    assert (status.phase, status.adapter, len(desk.tuning.jobs)) == ("live", "Base--helpdesk--v1", 1)


async def test_a_refused_tune_is_over_only_once_its_slot_is_free():
    desk = Desk()
    desk.serving.default, freed = (20, 270), asyncio.Event()

    async def unload(name) -> None:
        await freed.wait()

    desk.serving.unload = unload
    status = await desk.tuner.start_due()
    while not desk.store.verdicts:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert desk.tuner.running_tune_id == status.tune_id
    assert await desk.tuner.start_due() is None
    freed.set()
    await desk.finish()
    assert (status.phase, len(desk.tuning.jobs)) == ("refused", 1)
    assert await desk.tuner.start_due() is None


async def test_an_accepted_adapter_whose_alias_could_not_be_moved_goes_live_without_a_second_training():
    desk = Desk()
    move = desk.control.set_live

    async def lost(task, name, expected_version) -> None:
        raise Unavailable("the trainer is down")

    desk.control.set_live = lost
    await desk.tuner.start_due()
    await desk.finish()
    assert (desk.ended[0].phase, desk.store.verdicts["Base--helpdesk--v1"].outcome) == ("failed", "accepted")
    desk.control.set_live, desk.now_ms = move, desk.now_ms + 1_000
    status = await desk.tuner.start_due()
    await desk.finish()
    assert (status.phase, desk.control.now.target, len(desk.tuning.jobs)) == ("live", "Base--helpdesk--v1", 1)


async def test_a_refusal_whose_acknowledgement_was_lost_is_decided_all_the_same():
    desk = Desk()
    desk.serving.default, write = (20, 270), desk.store.write_verdict

    async def lost(verdict) -> None:
        await write(verdict)
        raise Unavailable("the store does not answer")

    desk.store.write_verdict = lost
    await desk.tuner.start_due()
    await desk.finish()
    assert desk.ended[0].phase == "failed"
    desk.now_ms += 1_000
    with pytest.raises(Conflict, match="was refused already"):
        await desk.tuner.start_due()
    desk.now_ms += 1_000_000
    assert await desk.tuner.start_due() is None
    assert len(desk.tuning.jobs) == 1


async def test_an_adapter_that_judging_cannot_help_is_given_up_and_tuned_anew():
    desk = Desk()
    desk.serving.answer_failure = Unavailable("the llm restarts")
    await desk.tuner.start_due()
    await desk.finish()
    desk.serving.answer_failure = None
    desk.now_ms += 1_000
    manifest = desk.store.manifests.pop("Base--helpdesk--v1")
    with pytest.raises(NotFound):
        await desk.tuner.start_due()
    desk.store.manifests["Base--helpdesk--v1"] = manifest
    status = await desk.tuner.start_due()
    await desk.finish()
    assert (status.adapter, status.phase) == ("Base--helpdesk--v2", "live")


async def test_the_task_that_has_waited_longest_comes_first_and_none_waits_for_ever():
    desk = Desk(0)
    tasks = {"zebra": 1_000, "apple": 2_000, "mango": 1_500}
    for task, created_at_ms in tasks.items():
        desk.add(20, task=task, created_at_ms=created_at_ms)
        desk.evaluations.tasks.add(task)
    order = []
    for _ in range(6):
        status = await desk.tuner.start_due()
        await desk.finish()
        order.append(status.task)
        desk.now_ms += 1_000
        desk.add(20, task="apple", created_at_ms=desk.now_ms)  # it has always something new
    assert order[:3] == ["zebra", "mango", "apple"]
    assert order[3:] == ["apple"] * 3


async def test_one_user_alone_cannot_have_a_task_tuned_and_is_told_why():
    desk = Desk(0, max_user_share=0.5)
    for one in demonstrations(60):
        desk.book.add_demonstration(TASK, replace(one, user_id="ada"))
    with pytest.raises(Conflict, match="60 demonstrations are there, 10 of them count and 20 are needed"):
        await desk.tuner.start(TASK, "me")
    assert await desk.tuner.start_due() is None
    for one in demonstrations(70)[60:]:
        desk.book.add_demonstration(TASK, replace(one, user_id="bo"))
    assert await desk.tuner.start_due() is not None
    await desk.finish()


async def test_an_adapter_that_was_trained_elsewhere_is_judged_by_its_weights_and_answers():
    desk = Desk()
    name = AdapterName("Base", TASK, 7)
    desk.store.manifests[str(name)] = AdapterManifest(name=str(name), base_model="Base", task=TASK)
    status = await desk.tuner.judge(str(name), "me")
    await desk.finish()
    assert (status.phase, desk.control.now.target, desk.tuning.jobs) == ("live", str(name), [])
    broken = AdapterName("Base", TASK, 8)
    desk.store.manifests[str(broken)] = AdapterManifest(name=str(broken), base_model="Base", task=TASK)
    desk.store.measured_norms = {"layer": 1_000.0}
    status = await desk.tuner.judge(str(broken), "me")
    await desk.finish()
    assert (status.phase, status.refusals) == ("refused", ["the update of layer has norm 1e+03, above the limit of 30"])
    assert str(broken) not in desk.serving.loaded


async def test_a_verdict_is_for_ever_unless_it_was_undecided():
    desk = Desk()
    desk.serving.default = (20, 270)
    await desk.tuner.start(TASK, "me")
    await desk.finish()
    assert desk.ended[0].phase == "refused"
    with pytest.raises(Conflict, match="was refused already, and a verdict is for ever"):
        await desk.tuner.judge("Base--helpdesk--v1", "me")


async def test_judging_and_tuning_wait_for_each_other():
    desk = Desk()
    desk.tuning.hold = asyncio.Event()
    await desk.tuner.start(TASK, "me")
    with pytest.raises(Conflict, match="is running"):
        await desk.tuner.judge("Base--helpdesk--v1", "me")
    await desk.tuner.stop()
