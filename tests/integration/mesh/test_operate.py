"""The operator's commands, as typed, on a real broker and on real gRPC servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import ReplicaStatus
from tunemesh.events.v1.example_pb2 import EXAMPLE_KIND_DEMONSTRATION, LlmExample
from tunemesh.events.v1.generation_pb2 import Generation
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord, TaskLabel

from services.common.events.dead_letters import REDRIVEN_HEADER, dead_letter, dead_letter_headers
from services.common.events.topics import FEEDBACK
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.mesh.__main__ import main
from services.mesh.operate.letter_book import LetterBook, note
from services.mesh.runner.topics import create_topics, mesh_topic_partitions
from tests.conftest import Broker
from tests.integration.mesh.operate_fakes import BASE, FakeParts
from tests.integration.streams.traffic import SPEC_PATH, Traffic

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[int, str, str]]
ALIAS = "llm/helpdesk/production"
V1, V2 = f"{BASE}--helpdesk--v1", f"{BASE}--helpdesk--v2"


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Broker]:
    started = Broker(tmp_path_factory.mktemp("operate-broker"))
    create_topics(started.bootstrap, mesh_topic_partitions(user_partitions=2))
    yield started
    started.stop()


@pytest.fixture
def parts() -> Iterator[FakeParts]:
    started = FakeParts()
    yield started
    started.stop()


@pytest.fixture
def tunemesh(broker: Broker, parts: FakeParts, tmp_path: Path, monkeypatch, capsys) -> Run:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap)
    monkeypatch.setenv("TUNEMESH_FEATURE_SPEC", str(SPEC_PATH))
    monkeypatch.setenv("TUNEMESH_MESH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("TUNEMESH_OPERATE_WAIT_MS", "60000")
    for part in ("router", "trainer", "tuner", "llm_admin", "prompt_assembler"):
        monkeypatch.setenv(f"TUNEMESH_OPERATE_{part.upper()}_TARGET", parts.target)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def traffic(broker: Broker) -> Iterator[Traffic]:
    with Traffic(broker.bootstrap) as sender:
        yield sender


def document(run: Run, *words: str) -> Any:
    code, out, err = run(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_why_shows_what_a_recommendation_was_made_of_and_what_came_of_it(tunemesh: Run, traffic: Traffic, parts: FakeParts) -> None:
    for _ in range(5):
        traffic.expose()
    shown = traffic.expose(num_items=3, user_id="ann", send=False)
    shown.scores.extend([0.9, 0.5, 0.1])
    shown.reasons.extend(["popular", "embedding", "cold_start"])
    traffic.send("exposures.v1", "ann", shown.SerializeToString())
    item = shown.item_ids[1]
    liked = traffic.answer(shown, item_id=item, value=5.0)
    sample = Sample(sample_id=7, item_id=item, labels=[TaskLabel(task="like", value=1.0)], feedback_id=liked.feedback_id)
    group = SampleRecord(group=SampleGroup(request_id=shown.request_id, user_id="ann", samples=[sample]))
    traffic.send("samples.v1", "ann", group.SerializeToString())
    late = dead_letter(
        topic="feedback.v1", partition=0, offset=4, reason="too_late", detail="", value=liked.SerializeToString(), feedback_id="f-late"
    )
    traffic.send("feedback.v1.dlq.v1", "ann", late.SerializeToString())
    traffic.producer.flush()
    parts.source_offsets = [10**6, 10**6]
    report = document(tunemesh, "why", shown.request_id)
    assert (report["kind"], report["user_id"], report["model_version"], report["incomplete"]) == ("recommendation", "ann", "1.7", [])
    row = report["items"][1]
    assert (row["item_id"], row["score"], row["channel"]) == (item, 0.5, "embedding")
    assert "log_count" in row["features"] and "mean_last_5" in report["user_features"]
    assert [(each["labels"], each["is_learned"]) for each in row["samples"]] == [({"like": 1.0}, True)]
    assert [each["feedback_id"] for each in report["feedback"]] == [liked.feedback_id]
    assert [each["reason"] for each in report["dead_letters"]] == ["too_late"]
    code, table, _ = tunemesh("why", shown.request_id)
    assert code == 0
    for text in (shown.request_id, "embedding", "log_count", "like=1 learned", "too_late"):
        assert text in table.replace("\n", " "), table
    parts.passed_over = [(partition, 0, 10**6) for partition in range(2)]
    [sample] = document(tunemesh, "why", shown.request_id)["items"][1]["samples"]
    assert (sample["is_learned"], sample["is_passed_over"]) == (False, True)


def test_why_shows_the_prompt_the_passages_and_the_examples_of_an_answer(tunemesh: Run, traffic: Traffic) -> None:
    now_ms = time.time_ns() // 1_000_000
    answer = Generation(
        request_id=uuid7(),
        user_id="bob",
        task="helpdesk",
        question="how late?",
        answer="[ten] at night",
        model_version=V1,
        prompt_version="answer@v3",
        passage_ids=["catalog:172"],
        started_at_ms=now_ms,
        first_token_at_ms=now_ms + 80,
        finished_at_ms=now_ms + 400,
    )
    answer.messages.add(role="user", content="how late are you open?")
    traffic.send("generations.v1", "bob", answer.SerializeToString())
    example = LlmExample(
        example_id="e1", task="helpdesk", kind=EXAMPLE_KIND_DEMONSTRATION, answer="until ten", request_id=answer.request_id
    )
    traffic.send("llm.examples.v1", "helpdesk", example.SerializeToString())
    traffic.producer.flush()
    report = document(tunemesh, "why", answer.request_id)
    assert (report["kind"], report["prompt_version"], report["passage_ids"]) == ("generation", "answer@v3", ["catalog:172"])
    assert (report["first_token_ms"], report["finished_ms"]) == (80, 400)
    assert [(each["example_id"], each["kind"]) for each in report["examples"]] == [("e1", "demonstration")]
    code, table, _ = tunemesh("why", answer.request_id)
    assert code == 0
    assert "[ten] at night" in table and "how late are you open?" in table and V1 in table.replace("\n", "")


def test_why_says_what_it_cannot_find(tunemesh: Run) -> None:
    code, _, said = tunemesh("why", uuid7())
    assert code == 1 and "no exposure and no generation" in said
    code, _, said = tunemesh("why", "42")
    assert code == 2 and "no request id" in said
    code, _, said = tunemesh("why", uuid7(int(time.time() * 1e3) - 86_400_000))
    assert code == 1 and "records read" in said


def test_why_of_a_day_ago_reads_nothing_of_today(tunemesh: Run, traffic: Traffic) -> None:
    traffic.expose()
    traffic.producer.flush()
    code, _, said = tunemesh("why", uuid7(int(time.time() * 1e3) - 86_400_000))
    assert code == 1 and "(0 records read)" in said


def test_rollback_takes_an_adapter_one_step_back_and_waits_until_it_answers(tunemesh: Run, parts: FakeParts) -> None:
    parts.set(ALIAS, V1, V2)
    done = document(tunemesh, "rollback", "llm/helpdesk")
    assert (done["from"], done["to"], done["version"]) == (V2, V1, 3)
    assert done["live_after_s"] >= 0.2  # it asked again, a tenth of a second apart, until the mesh followed
    assert parts.loaded == [V1]
    assert parts.state.alias(ALIAS).alias.target == V1


def test_before_its_first_adapter_a_task_was_answered_by_the_base(tunemesh: Run, parts: FakeParts) -> None:
    parts.set(ALIAS, V1)
    assert document(tunemesh, "rollback", "llm/helpdesk")["to"] == "base"
    assert parts.loaded == []


def test_rollback_of_a_prompt_goes_to_the_named_version(tunemesh: Run, parts: FakeParts) -> None:
    parts.set("prompt/answer/production", "v3")
    code, _, said = tunemesh("rollback", "prompt/answer")
    assert code == 2 and "--to" in said
    done = document(tunemesh, "rollback", "prompt/answer", "--to", "v1")
    assert (done["alias"], done["from"], done["to"]) == ("prompt/answer/production", "v3", "v1")


def test_rollback_refuses_what_does_not_exist_and_leaves_the_alias_alone(tunemesh: Run, parts: FakeParts) -> None:
    parts.set(ALIAS, V1)
    parts.set("prompt/answer/production", "v3")
    for words, text in [
        (("llm/helpdesk", "--to", f"{BASE}--helpdesk--v9"), "no adapter"),
        (("prompt/answer", "--to", "v9"), "no version 9"),
        (("llm/unknown",), "never set"),
    ]:
        code, _, said = tunemesh("rollback", *words)
        assert code == 1 and text in said, said
    for words, text in [
        (("llm/helpdesk", "--to", V1), "already"),
        (("prompt/answer", "--to", "newest"), "no version"),
        (("epoch/ranker",), "no alias"),
        (("ranker",), "--to TIME"),
    ]:
        code, _, said = tunemesh("rollback", *words)
        assert code == 2 and text in said, said
    assert parts.state.version(f"alias/{ALIAS}") == 1


def test_rollback_to_a_refused_adapter_must_be_asked_for_twice(tunemesh: Run, parts: FakeParts) -> None:
    parts.set(ALIAS, V1)
    parts.refused.add(V2)
    code, _, said = tunemesh("rollback", "llm/helpdesk", "--to", V2)
    assert code == 1 and f"the adapter gate refused {V2}" in said
    assert V2 not in parts.loaded
    assert document(tunemesh, "rollback", "llm/helpdesk", "--to", V2, "--allow-unjudged")["to"] == V2


def test_rollback_yields_to_somebody_who_moved_the_alias_meanwhile(tunemesh: Run, parts: FakeParts) -> None:
    parts.set(ALIAS, V1, V2)
    parts.interloper = "base"
    code, _, said = tunemesh("rollback", "llm/helpdesk")
    assert code == 1 and "FAILED_PRECONDITION" in said
    assert parts.state.alias(ALIAS).alias.target == "base"


def test_rollback_says_when_the_mesh_does_not_follow(tunemesh: Run, parts: FakeParts, monkeypatch) -> None:
    monkeypatch.setenv("TUNEMESH_OPERATE_WAIT_MS", "300")
    parts.set(ALIAS, V1, V2)
    parts.lag = 1_000_000
    code, _, said = tunemesh("rollback", "llm/helpdesk")
    assert code == 1 and "does not answer with it" in said


def test_a_base_that_answers_for_want_of_the_adapter_is_no_roll_back_to_the_base(tunemesh: Run, parts: FakeParts, monkeypatch) -> None:
    monkeypatch.setenv("TUNEMESH_OPERATE_WAIT_MS", "300")
    parts.set(ALIAS, V1)
    parts.degraded = "retrieval_unavailable,adapter_unavailable"
    code, _, said = tunemesh("rollback", "llm/helpdesk")
    assert code == 1 and "only because of retrieval_unavailable,adapter_unavailable" in said


def test_the_ranker_goes_back_to_a_checkpoint_and_its_replicas_follow(tunemesh: Run, parts: FakeParts, traffic: Traffic) -> None:
    now_ms = time.time_ns() // 1_000_000
    for name, epoch, age_ms in (("updater-1", 3, 1_000), ("updater-1", 4, 0), ("gone", 2, 3_600_000)):
        report = ReplicaStatus(replica_id=name, epoch=epoch, seq=1, reported_at_ms=now_ms - age_ms)
        traffic.send("replicas.v1", name, report.SerializeToString())
    traffic.producer.flush()
    back = document(tunemesh, "rollback", "ranker", "--to", "10m")
    after_ms = time.time_ns() // 1_000_000
    report = ReplicaStatus(replica_id="updater-1", epoch=4, seq=1, reported_at_ms=after_ms)
    traffic.send("replicas.v1", "updater-1", report.SerializeToString())
    traffic.producer.flush()
    assert (back["checkpoint"], back["epoch"], back["skipped"], back["replicas"]) == ("checkpoint-7", 4, [40, 2], ["updater-1"])
    again = document(tunemesh, "retrain", "--from", f"@{now_ms - 5_000}")
    assert again["skipped"] == [0, 0]
    first, second = parts.restores
    assert first.skip_later_samples and not second.skip_later_samples
    assert now_ms - 600_000 <= first.not_after_ms <= after_ms - 600_000 and second.not_after_ms == now_ms - 5_000
    code, _, said = tunemesh("retrain", "--from", "tomorrow")
    assert code == 2 and "is no time" in said
    back = document(tunemesh, "rollback", "ranker", "--to", "3.1207")
    assert (parts.restores[-1].not_after_version, parts.restores[-1].not_after_ms, back["version"]) == ("3.1207", 0, "3.1100")


def test_learning_is_paused_and_resumed(tunemesh: Run, parts: FakeParts) -> None:
    paused = document(tunemesh, "pause", "learning")
    assert paused["ranker"]["is_paused"] and paused["tuner"] == {"is_paused": True, "running_tune_id": "t1"}
    assert parts.paused
    code, said, _ = tunemesh("resume", "learning")
    assert code == 0 and "the ranker learns" in said and "tune t1 goes on" in said and not parts.paused


def test_learning_is_paused_also_when_there_is_no_tuner(tunemesh: Run, parts: FakeParts, monkeypatch) -> None:
    monkeypatch.setenv("TUNEMESH_OPERATE_TUNER_TARGET", "127.0.0.1:1")
    code, _, said = tunemesh("pause", "learning")
    assert code == 0 and parts.paused and "how the tuner stands is not known" in said


def test_a_part_that_is_down_is_one_line(tunemesh: Run, monkeypatch) -> None:
    monkeypatch.setenv("TUNEMESH_OPERATE_TRAINER_TARGET", "127.0.0.1:1")
    code, _, said = tunemesh("pause", "learning")
    assert code == 1 and said.count("\n") == 1 and "trainer at 127.0.0.1:1 said UNAVAILABLE: nobody answers there" in said
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("TUNEMESH_OPERATE_KAFKA_TIMEOUT_MS", "1000")
    code, _, said = tunemesh("dlq", "list")
    assert code == 1 and "no Kafka broker at 127.0.0.1:1" in said


class Letters:
    """Dead letters of feedback on a broker of the test's own."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic, self.sent = traffic, 0

    def add(self, reason: str, *, value: bytes = b"", headers=()) -> DeadLetter:
        self.sent += 1
        letter = dead_letter(
            topic="feedback.v1",
            partition=0,
            offset=self.sent,
            reason=reason,
            detail="made up",
            key=f"u{self.sent}".encode(),
            value=value or f"record {self.sent}".encode(),
            headers=[("content-type", b"application/json"), *headers],
        )
        self.put(letter)
        return letter

    def put(self, letter: DeadLetter) -> None:
        self.traffic.send(FEEDBACK.dlq, "u", letter.SerializeToString(), headers=dead_letter_headers(letter, "/test"))
        self.traffic.producer.flush()

    def put_back(self) -> list[tuple[bytes, bytes, dict[str, bytes]]]:
        """What stands in feedback.v1."""
        consumer = assigned_consumer(self.traffic.bootstrap, FEEDBACK.name, start="beginning", client_id="test")
        try:
            return sorted((record.key, record.value, dict(record.headers)) for record in drain_to_end(consumer))
        finally:
            consumer.close()


@pytest.fixture
def letters(fresh_broker: Broker, mesh_topics, tunemesh: Run, monkeypatch) -> Iterator[Letters]:
    mesh_topics(fresh_broker.bootstrap)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", fresh_broker.bootstrap)
    with Traffic(fresh_broker.bootstrap) as traffic:
        yield Letters(traffic)


def test_dead_letters_are_counted_listed_and_put_back_once(tunemesh: Run, letters: Letters) -> None:
    code, said, _ = tunemesh("dlq", "list")
    assert code == 0 and "there are no dead letters" in said
    orphan = letters.add("orphan")
    letters.put(orphan)  # its writer repeated it
    letters.add("malformed")
    letters.add("orphan")
    (first, second) = document(tunemesh, "dlq", "list")
    assert [(row["topic"], row["reason"], row["letters"], row["redriven"]) for row in (first, second)] == [
        ("feedback.v1", "malformed", 1, 0),
        ("feedback.v1", "orphan", 2, 0),
    ]
    one = document(tunemesh, "dlq", "redrive", "feedback.v1", "--reason", "orphan", "--limit", "1")
    assert (one["redriven"], one["by_reason"], one["left_for_next_time"]) == (1, {"orphan": 1}, 1)
    ((key, value, headers),) = letters.put_back()
    assert (key, value) == (orphan.key, orphan.value)
    assert headers == {"content-type": b"application/json", REDRIVEN_HEADER: b"feedback.v1/0/1/orphan"}
    assert document(tunemesh, "dlq", "redrive", "feedback.v1.dlq.v1")["redriven"] == 2
    assert document(tunemesh, "dlq", "redrive", "feedback.v1")["redriven"] == 0
    assert [value for _, value, _ in letters.put_back()] == [b"record 1", b"record 2", b"record 3"]
    assert {row["state"] for row in document(tunemesh, "dlq", "list", "feedback.v1")} == {"redriven"}
    code, said, _ = tunemesh("dlq", "redrive", "foreign.v1")
    assert code == 2


def test_a_record_that_fails_again_is_put_back_again_only_on_request(tunemesh: Run, letters: Letters) -> None:
    letters.add("orphan", headers=[(REDRIVEN_HEADER, b"feedback.v1/0/99/orphan")])
    assert document(tunemesh, "dlq", "redrive", "feedback.v1")["redriven"] == 0
    assert document(tunemesh, "dlq", "redrive", "feedback.v1", "--again")["redriven"] == 1
    assert [headers[REDRIVEN_HEADER] for _, _, headers in letters.put_back()] == [b"feedback.v1/0/1/orphan"]


def test_an_interrupted_run_is_continued_without_putting_anything_back_twice(tunemesh: Run, letters: Letters) -> None:
    """A run claimed two letters a while ago, put one back, and died."""
    long_ago_ms = time.time_ns() // 1_000_000 - 120_000
    book = LetterBook()
    for offset, body in enumerate([letters.add("orphan"), letters.add("orphan")]):
        book.add(offset, body)
    sent, unsent = book.pending()
    for letter in (sent, unsent):
        letters.put(note(letter, "redrive_claimed", "dead-run", long_ago_ms))
    letters.traffic.send("feedback.v1", "u1", sent.body.value, headers=[(REDRIVEN_HEADER, str(sent.name).encode())])
    letters.traffic.producer.flush()
    done = document(tunemesh, "dlq", "redrive", "feedback.v1")
    assert (done["redriven"], done["sent_by_an_interrupted_run"]) == (1, 1)
    assert [value for _, value, _ in letters.put_back()] == [b"record 1", b"record 2"]
    assert document(tunemesh, "dlq", "redrive", "feedback.v1")["redriven"] == 0


def test_letters_that_another_run_is_at_are_left_to_it(tunemesh: Run, letters: Letters) -> None:
    book = LetterBook()
    book.add(0, letters.add("orphan"))
    letters.put(note(book.pending()[0], "redrive_claimed", "other-run", time.time_ns() // 1_000_000))
    done = document(tunemesh, "dlq", "redrive", "feedback.v1")
    assert (done["redriven"], done["left_to_another_run"]) == (0, 1)
    assert letters.put_back() == []
