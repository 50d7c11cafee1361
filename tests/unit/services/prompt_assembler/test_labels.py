from types import SimpleNamespace

from tunemesh.events.v1.control_pb2 import Alias, ControlRecord

from services.common.language.aliases import AliasView
from services.prompt_assembler.labels import AliasLabels


def record(subject: str, target: str) -> SimpleNamespace:
    value = ControlRecord(subject=subject, version=1, alias=Alias(target=target)).SerializeToString()
    return SimpleNamespace(key=subject.encode(), value=value, headers=[], partition=0, offset=0)


def test_labels_are_the_aliases_of_their_template_that_point_at_versions():
    view = AliasView()
    labels = AliasLabels(view)
    assert not labels.is_known and labels.of("answer") == {}
    view.begin(
        [
            record("alias/prompt/answer/production", "v2"),
            record("alias/prompt/answer/canary", "v13"),
            record("alias/prompt/answer/broken", "2"),
            record("alias/prompt/answering/production", "v4"),
            record("alias/llm/answer/production", "base"),
        ]
    )
    assert labels.is_known
    assert labels.of("answer") == {"production": 2, "canary": 13}
    assert labels.of("answering") == {"production": 4} and labels.of("other") == {}
