from dataclasses import replace

import numpy as np
import pytest
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord, TaskLabel

from services.common.events.chat import Message
from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Declared, Features, past_of
from services.common.ranker.states import HistoryEntry
from services.mesh.operate.screen import print_recommendation
from services.mesh.operate.why_report import Learned, Placed, generation, recommendation
from services.mesh.runner.environments import REPOSITORY_ROOT

SPEC = FeatureSpec.load(REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml")
NAMES = SPEC.item_columns


def block(num_items: int) -> bytes:
    features = Features(
        user_key=1,
        history_keys_L=np.array([11, 12], np.int64),
        history_values_L=np.array([1.0, 0.5], np.float16),
        user_U=np.arange(len(SPEC.user_columns)).astype(np.float16),
        items_NF=np.arange(num_items * len(NAMES)).reshape(num_items, -1).astype(np.float16),
    )
    return exposure_block.encode(features, SPEC.schema_hash)


def exposure(**changes) -> Exposure:
    fields = {
        "request_id": "r",
        "user_id": "u",
        "exposed_at_ms": 1_795_309_200_000,
        "item_ids": ("5", "6"),
        "features_block": block(2),
        "schema_hash": SPEC.schema_hash,
        "variant": "default",
        "model_version": "1.7",
        "scores": (0.5, 0.25),
        "reasons": ("popular,embedding", "cold_start"),
    }
    return Exposure(**(fields | changes))


def sample_record(sample_id: int, item_id: str, *, revision: int = 0) -> SampleRecord:
    sample = Sample(sample_id=sample_id, item_id=item_id, revision=revision, labels=[TaskLabel(task="interact", value=1.0)])
    return SampleRecord(group=SampleGroup(request_id="r", samples=[sample]))


def explain(shown: Exposure, *, samples=(), learned: Learned | None = None) -> dict:
    return recommendation(Placed(shown, 1, 33), list(samples), [], [], SPEC, learned)


def test_each_item_has_its_features_by_name_its_score_and_its_channel() -> None:
    report = explain(exposure())
    second = report["items"][1]
    assert (second["rank"], second["item_id"], second["score"], second["channel"]) == (2, "6", 0.25, "cold_start")
    assert second["features"] == {name: len(NAMES) + index for index, name in enumerate(NAMES)}
    assert report["user_features"] == {name: index for index, name in enumerate(SPEC.user_columns)}
    assert report["history"] == [{"item_key": 11, "value": 1.0}, {"item_key": 12, "value": 0.5}]
    assert report["logged_at"] == {"topic": "exposures.v1", "partition": 1, "offset": 33}


def test_what_the_request_brought_is_shown_and_its_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    context = {"page": "home", "[red]": 21, **{f"n{number:04}": number for number in range(1_000)}}
    report = explain(exposure(context=context, profile={"tags": ("a", "b")}))
    assert (report["context"], report["profile"]) == (context, {"tags": ("a", "b")})
    report["incomplete"] = []
    print_recommendation(report)
    shown = capsys.readouterr().out
    assert "context of the request" in shown and "home" in shown and "[red]" in shown and "('a', 'b')" in shown
    assert "n0017" in shown and "n0018" not in shown  # twenty; --json has all
    print_recommendation(explain(exposure()) | {"incomplete": []})
    assert "of the request" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"features_block": b""}, "made without features"),
        ({"features_block": b"\x01rubbish"}, "too few"),
        ({"features_block": block(3)}, "rows of 3 items"),
    ],
)
def test_without_readable_features_the_report_says_why_and_goes_on(changes, why: str) -> None:
    report = explain(exposure(**changes))
    assert why in report["features_missing"]
    assert [item["features"] for item in report["items"]] == [{}, {}]


def test_an_exposure_of_an_older_router_has_neither_scores_nor_channels() -> None:
    item = explain(exposure(scores=(), reasons=()))["items"][0]
    assert (item["score"], item["channel"], item["propensity"]) == (None, "", 1.0)


FEATURES = [
    {"id_feature": {"feature_name": "city", "expression": "context:city", "embedding_dim": 4}},
    {"id_feature": {"feature_name": "shelf", "expression": "item:shelf", "num_buckets": 5, "embedding_dim": 4}},
    {
        "sequence_feature": {
            "sequence_name": "latest",
            "features": [{"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4}}],
        }
    },
]


def test_rows_of_tables_are_shown_by_the_words_behind_them(capsys: pytest.CaptureFixture[str]) -> None:
    spec = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"format": 2, "features": FEATURES})
    items, context = spec.plan.items([{"shelf": 3}, {}]), {"city": "[red]Oslo"}
    past = past_of([HistoryEntry("6", 0.5, 0)], 1, items, np.array([1]))
    declared = Declared.of(spec.plan, {}, context, items, past, ["5", "6"])
    built_in = exposure_block.decode(block(2), SPEC)
    whole = exposure_block.encode(replace(built_in, keys=declared.keys), spec.schema_hash)
    shown = exposure(features_block=whole, schema_hash=spec.schema_hash, context=context)
    report = recommendation(Placed(shown, 1, 33), [], [], [], spec, None)
    assert report["features_missing"] == ""
    assert report["user_rows"] == {"city": ["[red]Oslo"]}
    assert [item["rows"] for item in report["items"]] == [{"shelf": ["3"]}, {"shelf": ["(absent)"]}]
    assert report["sequences"] == {"latest": [{"item": ["6"]}]}
    print_recommendation(report | {"incomplete": []})
    printed = capsys.readouterr().out
    assert "latest, newest first" in printed and "[red]Oslo" in printed and "(absent)" in printed


def test_of_a_spec_without_tables_no_rows_are_shown() -> None:
    report = explain(exposure())
    assert (report["user_rows"], report["sequences"], [item["rows"] for item in report["items"]]) == ({}, {}, [{}, {}])


def test_samples_stand_beside_their_item_once_and_say_whether_they_are_learned() -> None:
    records = [Placed(sample_record(1, "6"), 0, 9), Placed(sample_record(2, "6", revision=1), 0, 10), Placed(sample_record(1, "6"), 0, 12)]
    report = explain(exposure(), samples=records, learned=Learned("3.8", (10, 0)))
    assert report["items"][0]["samples"] == []
    assert [(each["revision"], each["is_learned"]) for each in report["items"][1]["samples"]] == [(0, True), (1, False)]
    assert report["learned_up_to"] == "3.8"


def test_a_sample_that_a_rollback_passed_over_is_not_called_learned(capsys: pytest.CaptureFixture[str]) -> None:
    records = [Placed(sample_record(number, "6", revision=number), number % 2, 9 + number) for number in range(4)]
    learned = Learned("3.8", (13, 13), passed_over=((0, 9, 11), (1, 12, 13)))
    report = explain(exposure(), samples=records, learned=learned)
    samples = report["items"][1]["samples"]
    assert [(each["offset"], each["is_learned"], each["is_passed_over"]) for each in samples] == [
        (9, False, True),
        (10, True, False),
        (11, True, False),
        (12, False, True),
    ]
    print_recommendation(report | {"incomplete": []})
    assert "passed over by a rollback" in " ".join(capsys.readouterr().out.split())


def test_without_the_trainer_it_is_unknown_whether_samples_are_learned() -> None:
    report = explain(exposure(), samples=[Placed(sample_record(1, "5"), 0, 9)])
    assert report["items"][0]["samples"][0]["is_learned"] is None


def test_an_answer_has_its_prompt_its_passages_and_its_times() -> None:
    answer = Generation(
        request_id="r",
        user_id="u",
        task="answer",
        question="who?",
        messages=(Message("user", "who?"),),
        answer="me",
        finish_reason="stop",
        model_version="base",
        prompt_version="answer@v3",
        passage_ids=("catalog:1",),
        started_at_ms=1_000,
        first_token_at_ms=1_120,
        finished_at_ms=0,
    )
    thumb = Feedback(feedback_id="f", request_id="r", user_id="u", item_id="", kind="boolean", value=1)
    report = generation(Placed(answer, 0, 1), [Placed(thumb, 0, 2)], [], [])
    assert (report["first_token_ms"], report["finished_ms"]) == (120, None)
    assert report["messages"] == [{"role": "user", "content": "who?"}]
    assert report["feedback"][0]["feedback_id"] == "f"
