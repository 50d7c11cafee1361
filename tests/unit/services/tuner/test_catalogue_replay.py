import json

import pytest

from services.common.events.chat import Passage
from services.common.platform.errors import InvalidInput
from services.tuner.catalogue_replay import read_replay_file
from services.tuner.replay import ReplayExample


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
