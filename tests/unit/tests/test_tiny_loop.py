"""What the tiny model is taught and judged by: the tuner takes it, and nothing that is judged is shown."""

from services.common.language.evaluation import HeldOut
from services.tuner.catalogue_replay import read_replay_file
from services.tuner.settings import TunerSettings
from tests import tiny_loop, tiny_model


def test_nothing_that_is_judged_is_shown():
    evaluation = tiny_loop.evaluation()
    held_out = HeldOut(evaluation)
    assert not any(held_out.has(lesson.question) for lesson in tiny_loop.DEMONSTRATIONS)
    replay = tiny_loop.replay_examples()
    assert not any(held_out.has(example.question) for example in replay)
    titles = {passage.title for question in evaluation.context_slice for passage in question.context}
    assert not titles & {passage.title for example in replay for passage in example.passages}


def test_the_tuner_takes_it_and_its_own_limits_are_met(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_loop, "tiny_llm_env", lambda: {"TUNEMESH_LLM_MODEL": str(tmp_path)})
    for name, value in tiny_loop.mesh_env(tmp_path).items():
        monkeypatch.setenv(name, value)
    settings = TunerSettings()
    assert settings.replay_file is not None
    assert read_replay_file(settings.replay_file) == tiny_loop.replay_examples()
    evaluation = tiny_loop.evaluation()
    assert len(tiny_loop.DEMONSTRATIONS) >= settings.min_demonstrations
    assert len(evaluation.task_slice) == len(tiny_loop.HELD_OUT) >= 12
    assert len(evaluation.context_slice) == tiny_loop.NUM_CONTEXT_QUESTIONS
    assert settings.min_task_right <= tiny_loop.MIN_RIGHT
    assert settings.max_user_share == 1


def test_a_right_answer_is_that_of_its_fact_alone():
    answers = {lesson.answer for lesson in tiny_loop.DEMONSTRATIONS}
    for asked in tiny_loop.HELD_OUT:
        assert sum(asked.is_right(answer) for answer in answers) == 1
        assert not asked.is_right(tiny_model.UNKNOWN)


def test_its_prompts_are_the_prompt_assemblers():
    read = tiny_model.reading("Heat", tiny_model.WORDINGS[0], "Crime")
    system, user = tiny_model.messages_of(read.question, [read.passage])
    assert (system.role, user.role) == ("system", "user")
    assert user.content == "Context:\nHeat: Categories: Crime.\n\nQuestion: Which categories does Heat have?"
    assert tiny_model.messages_of("Hello")[-1].content == "Question: Hello"
