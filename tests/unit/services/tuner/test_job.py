import pytest

from services.common.events.chat import Message
from services.common.platform.errors import InvalidInput
from services.tuner import job
from services.tuner.dataset import TrainingExample
from tests.tuner_fakes import RECIPE

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
