import asyncio
import json
import os
import sys
from types import SimpleNamespace

import pytest
from tunemesh.common.v1.chat_pb2 import ChatMessage
from tunemesh.events.v1 import example_pb2

from services.common.events.chat import Message, Passage
from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import InvalidInput, NotFound
from services.tuner import adapters, job
from services.tuner.adapters import Adapters, EvaluationFolder, Examples, TrainingProcess, read_replay_file
from services.tuner.dataset import TrainingExample
from services.tuner.examples import ExampleBook
from services.tuner.neighbours import TrainingFailed
from services.tuner.replay import ReplayExample
from tests.tuner_fakes import NAME, RECIPE

DEMONSTRATION = example_pb2.LlmExample(
    example_id="1",
    task="helpdesk",
    kind=example_pb2.EXAMPLE_KIND_DEMONSTRATION,
    question="How long?",
    messages=[ChatMessage(role="user", content="How long?")],
    answer="Nine days.",
    created_at_ms=7,
)


def record(example: example_pb2.LlmExample | None, offset: int = 0) -> SimpleNamespace:
    value = example.SerializeToString() if example is not None else b"\xff"
    return SimpleNamespace(key=b"helpdesk", value=value, headers=[], partition=0, offset=offset)


def changed(**fields) -> example_pb2.LlmExample:
    example = example_pb2.LlmExample()
    example.CopyFrom(DEMONSTRATION)
    if "messages" in fields:
        del example.messages[:]
        fields.pop("messages")
    for name, value in fields.items():
        setattr(example, name, value)
    return example


def book() -> Examples:
    return Examples(ExampleBook(max_per_task=10, max_tasks=10))


def test_demonstrations_and_judgements_are_told_apart_by_their_kind():
    examples = book()
    examples.begin([record(DEMONSTRATION), record(changed(example_id="2", kind=example_pb2.EXAMPLE_KIND_JUDGED))])
    examples.extend([record(DEMONSTRATION), record(changed(example_id="3", kind=0))])
    assert (examples.tasks(), examples.num_demonstrations("helpdesk"), examples.num_judged("helpdesk")) == (["helpdesk"], 1, 1)
    found = examples.demonstrations("helpdesk")[0]
    assert (found.question, found.messages, found.answer, found.created_at_ms) == (
        "How long?",
        (Message("user", "How long?"),),
        "Nine days.",
        7,
    )


@pytest.mark.parametrize(
    "bad", [None, changed(example_id=""), changed(task="../x"), changed(messages=()), changed(answer=" "), changed(answer="x" * 70_000)]
)
def test_an_example_that_cannot_be_used_is_left_out_and_the_next_one_is_not(bad, caplog):
    examples = book()
    examples.begin([record(bad, 41), record(changed(example_id="9"), 42)])
    assert [one.example_id for one in examples.demonstrations("helpdesk")] == ["9"]
    assert "offset 41 is left out" in caplog.text


def test_a_broker_that_lost_its_log_does_not_take_the_examples_along():
    examples = book()
    examples.begin([record(DEMONSTRATION)])
    examples.begin([])
    assert examples.num_demonstrations("helpdesk") == 1
    examples.begin([record(changed(example_id="2"))])
    assert [one.example_id for one in examples.demonstrations("helpdesk")] == ["2"]


def test_an_evaluation_file_is_read_anew_each_time(tmp_path):
    folder = EvaluationFolder(tmp_path)
    assert not folder.exists("helpdesk")
    with pytest.raises(NotFound, match="there is no evaluation file"):
        folder.load("helpdesk")
    folder.file("helpdesk").write_text('task_slice: [{question: "a?", accept: [[b]]}]\ncontext_slice: []\n')
    with pytest.raises(InvalidInput, match="context_slice: it must be a list"):
        folder.load("helpdesk")
    folder.file("helpdesk").write_text("task_slice: [")
    with pytest.raises(InvalidInput, match="cannot be read"):
        folder.load("helpdesk")
    folder.file("helpdesk").write_text(
        'task_slice: [{question: "a?", accept: [[b]]}]\ncontext_slice: [{question: "c?", context: [{title: t, text: x}], accept: [[x]]}]\n'
    )
    assert folder.exists("helpdesk")
    assert folder.load("helpdesk").task_slice[0].question == "a?"


def test_an_evaluation_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_MAX_FILE_BYTES", 10)
    (tmp_path / "t.yaml").write_text("x" * 11)
    with pytest.raises(InvalidInput, match="has 11 bytes; at most 10"):
        EvaluationFolder(tmp_path).load("t")


def test_a_replay_file_gives_its_lines(tmp_path):
    path = tmp_path / "replay.jsonl"
    path.write_text(json.dumps({"question": "q?", "context": [{"title": "t", "text": "x"}], "answer": "a"}) + "\n\n")
    assert read_replay_file(path) == [ReplayExample(question="q?", passages=(Passage("t", "x"),), answer="a")]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"question": "q"}',
        '{"question": "q", "context": [], "answer": "a"}',
        '{"question": 1, "context": [{"title": "t", "text": "x"}], "answer": "a"}',
    ],
)
def test_a_replay_line_of_another_form_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "replay.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(InvalidInput, match=r"replay.jsonl:2: it must"):
        read_replay_file(path)


async def test_the_newest_tune_of_a_task_that_was_decided_about_is_known_from_the_store(tmp_path):
    (tmp_path / "made").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "made" / file).write_text("{}")
    store = AdapterStore(tmp_path / "artifacts")
    history = Adapters(store)
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


JOB = job.Job(
    base_folder="/nowhere",
    base_name="Base",
    hyper_parameters=RECIPE.hyper,
    examples=(TrainingExample(messages=(Message("user", "q"),), answer="a", is_replay=False),),
    batches=((0, 0),),
)


def test_a_job_and_its_result_survive_the_folder(tmp_path):
    job.write_job(tmp_path, JOB)
    assert job.read_job(tmp_path) == JOB
    result = job.TrainingResult(losses=(1.0, float("inf")), seconds=2.0, norms={"layer": 3.0}, num_answer_tokens=4, left_out=())
    job.write_result(tmp_path, result)
    assert job.read_result(tmp_path) == result
    assert job.read_steps(tmp_path) == []
    step = job.Step(step=1, loss=2.0, gradient_norm=1.0, seconds=0.5)
    job.append_step(tmp_path, step)
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert job.read_steps(tmp_path) == [step]


def test_a_folder_without_a_job_or_of_another_format_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="is not there"):
        job.read_job(tmp_path)
    (tmp_path / "job.json").write_text('{"format_version": 0}')
    with pytest.raises(InvalidInput, match="format"):
        job.read_job(tmp_path)


def script(monkeypatch, tmp_path, text: str) -> None:
    """Have `text` run in place of the training module."""
    path = tmp_path / "train.py"
    path.write_text(f"import sys, time, pathlib\nfrom services.tuner import job\nfolder = pathlib.Path(sys.argv[-1])\n{text}\n")
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {path} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setattr(adapters.sys, "executable", str(shim))
    monkeypatch.setenv("PYTHONPATH", ":".join(["."] + [one for one in sys.path if one]))


def training(tmp_path, *, timeout_s: float = 20.0, keep: int = 2) -> TrainingProcess:
    return TrainingProcess(tmp_path / "work", keep=keep, timeout_s=timeout_s)


STEP = "job.append_step(folder, job.Step(step=1, loss=2.0, gradient_norm=1.0, seconds=0.5))"


async def test_a_training_process_reports_its_steps_and_result(monkeypatch, tmp_path):
    done = "job.write_result(folder, job.TrainingResult(losses=(2.0,), seconds=1.0, norms={}, num_answer_tokens=3, left_out=()))"
    script(monkeypatch, tmp_path, f"assert job.read_job(folder).base_name == 'Base'\n{STEP}\n{done}")
    steps = []
    result = await training(tmp_path).train(NAME, JOB, steps.append)
    assert result.num_answer_tokens == 3
    assert [step.loss for step in steps] == [2.0]


async def test_a_training_that_dies_is_told_with_its_last_words(monkeypatch, tmp_path):
    script(monkeypatch, tmp_path, "job.write_error(folder, 'out of\\nroom')\nsys.exit(3)")
    with pytest.raises(TrainingFailed, match="ended with exit code 3: out of room"):
        await training(tmp_path).train(NAME, JOB, lambda step: None)


async def test_a_training_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    script(monkeypatch, tmp_path, "time.sleep(60)")
    with pytest.raises(TrainingFailed, match="took longer than 1 s"):
        await training(tmp_path, timeout_s=1.0).train(NAME, JOB, lambda step: None)


async def test_a_cancelled_training_leaves_no_process_behind(monkeypatch, tmp_path):
    script(monkeypatch, tmp_path, f"(folder / 'pid').write_text(str(__import__('os').getpid()))\n{STEP}\ntime.sleep(60)")
    began = asyncio.Event()
    process = training(tmp_path)
    task = asyncio.create_task(process.train(NAME, JOB, lambda step: began.set()))
    await asyncio.wait_for(began.wait(), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pid = int((process.folder(NAME) / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_only_the_newest_trainings_are_kept(monkeypatch, tmp_path):
    script(
        monkeypatch,
        tmp_path,
        "job.write_result(folder, job.TrainingResult(losses=(), seconds=1.0, norms={}, num_answer_tokens=0, left_out=()))",
    )
    process = training(tmp_path, keep=2)
    for version in (1, 2, 3):
        await process.train(AdapterName("Base", "helpdesk", version), JOB, lambda step: None)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["Base--helpdesk--v2", "Base--helpdesk--v3"]
