import json

import pytest

from services.common.events.chat import Passage
from services.common.platform.errors import InvalidInput
from services.tuner.catalogue_replay import CatalogueReplay, read_replay_file
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


async def test_a_tasks_own_file_comes_before_the_one_for_all(tmp_path):
    line = json.dumps({"question": "q?", "context": [{"title": "t", "text": "x"}], "answer": "a"})
    (tmp_path / "own.replay.jsonl").write_text(line.replace("q?", "own?"))
    (tmp_path / "all.jsonl").write_text(line)

    def replay(file):
        return CatalogueReplay("nobody:1", client_id="t", folder=tmp_path, file=file, max_items=1)

    assert [one.question for one in await replay(tmp_path / "all.jsonl").given("own")] == ["own?"]
    assert [one.question for one in await replay(tmp_path / "all.jsonl").given("other")] == ["q?"]
    assert await replay(None).given("other") is None
