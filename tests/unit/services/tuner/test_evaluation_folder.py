import pytest

from services.common.platform.errors import InvalidInput, NotFound
from services.tuner import evaluation_folder
from services.tuner.evaluation_folder import EvaluationFolder


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
    monkeypatch.setattr(evaluation_folder, "MAX_FILE_BYTES", 10)
    (tmp_path / "t.yaml").write_text("x" * 11)
    with pytest.raises(InvalidInput, match="has 11 bytes; at most 10"):
        EvaluationFolder(tmp_path).load("t")


def test_a_value_that_yaml_takes_for_a_date_that_is_none_names_the_file(tmp_path):
    (tmp_path / "t.yaml").write_text("task_slice: 2023-02-30\n")
    with pytest.raises(InvalidInput, match=r"t\.yaml cannot be read: day is out of range"):
        EvaluationFolder(tmp_path).load("t")
