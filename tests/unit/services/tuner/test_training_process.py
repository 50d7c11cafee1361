import asyncio
import os
import sys

import pytest

from services.common.language.adapter_name import AdapterName
from services.tuner import training_process
from services.tuner.neighbours import TrainingFailed
from services.tuner.training_process import TrainingProcess
from tests.limits import seconds
from tests.tuner_fakes import NAME
from tests.unit.services.tuner.test_job import JOB


def script(monkeypatch, tmp_path, text: str) -> None:
    """Have `text` run in place of the training module."""
    path = tmp_path / "train.py"
    path.write_text(f"import sys, time, pathlib\nfrom services.tuner import job\nfolder = pathlib.Path(sys.argv[-1])\n{text}\n")
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {path} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setattr(training_process.sys, "executable", str(shim))
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
    await asyncio.wait_for(began.wait(), seconds(20))
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
