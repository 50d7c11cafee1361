"""The joiner as a process on a real broker."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition

from services.common.events import envelope
from services.common.platform.ids import sample_id
from services.common.platform.partitioning import partition_of
from services.common.ranker import exposure_block
from services.common.ranker.labels import keep_negative
from tests.integration.streams.traffic import PARTITIONS, SESSION_TIMEOUT_MS, SPEC, SPEC_PATH, Process, Traffic, read_outcome
from tests.limits import seconds

pytestmark = pytest.mark.integration
WINDOW_MS, HORIZON_MS = 2_000, 3_500
TICK_MS = 500  # the default


@pytest.fixture
def joiner(fresh_broker, mesh_topics, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    started: list[Process] = []
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap,
        "TUNEMESH_FEATURE_SPEC": str(SPEC_PATH),
        "TUNEMESH_USER_PARTITIONS": str(PARTITIONS),
        "TUNEMESH_TELEMETRY_DIR": str(tmp_path / "telemetry"),
        "TUNEMESH_JOINER_PORT": "0",
        "TUNEMESH_JOINER_SESSION_TIMEOUT_MS": SESSION_TIMEOUT_MS,
        "TUNEMESH_JOINER_WINDOW_MS": str(WINDOW_MS),
        "TUNEMESH_JOINER_LATE_HORIZON_MS": str(HORIZON_MS),
    }

    def start(*, wait: bool = True, **more: object) -> Process:
        own = {f"TUNEMESH_JOINER_{name.upper()}": str(value) for name, value in more.items()}
        process = Process("streams.joiner", tmp_path / f"joiner-{len(started)}.log", env | own)
        started.append(process)
        if wait:
            process.wait_for("taken up", count=PARTITIONS)
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def traffic(fresh_broker) -> Iterator[Traffic]:
    with Traffic(fresh_broker.bootstrap) as sender:
        yield sender


def kept_items(exposure) -> list[str]:
    rate = SPEC.negatives.keep_rate
    return [item for item in exposure.item_ids if keep_negative(sample_id(exposure.request_id, item, 0), rate)]


def test_an_answer_becomes_a_sample_at_once_and_the_rest_become_negatives(fresh_broker, joiner, traffic, tmp_path) -> None:
    process = joiner()
    exposure = traffic.expose(num_items=100)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    feedback = traffic.answer(exposure, value=5.0, headers=envelope.headers_for("t", "/test", traceparent=trace))
    traffic.producer.flush()
    outcome = read_outcome(fresh_broker.bootstrap, lambda found: len(found.groups) >= 2)
    positive, negatives = outcome.groups
    (sample,) = positive.samples
    assert (positive.request_id, positive.user_id, positive.model_version) == (exposure.request_id, exposure.user_id, "1.7")
    assert (sample.item_id, sample.feedback_id, sample.accepted_at_ms) == (feedback.item_id, feedback.feedback_id, feedback.accepted_at_ms)
    assert {label.task: label.value for label in sample.labels} == {"interact": 1.0, "like": 1.0}
    assert (sample.keep_rate, sample.propensity) == (1.0, 1.0)
    assert [each.item_id for each in negatives.samples] == [item for item in kept_items(exposure) if item != feedback.item_id]
    assert all(each.keep_rate == pytest.approx(SPEC.negatives.keep_rate) for each in negatives.samples)
    # The features are those of the exposure, row by row.
    rows = exposure_block.decode(exposure.features_block, SPEC).items_NF
    learned = exposure_block.decode(negatives.features_block, SPEC).items_NF
    order = list(exposure.item_ids)
    assert (learned == rows[[order.index(each.item_id) for each in negatives.samples]]).all()
    assert outcome.traceparents[0].split("-")[1] == trace.split("-")[1]
    assert outcome.traceparents[0].split("-")[2] != trace.split("-")[2]
    assert process.stop() == 0
    spans = [json.loads(line) for path in (tmp_path / "telemetry").glob("joiner-*[0-9].jsonl") for line in path.read_text().splitlines()]
    (joined,) = [span for span in spans if span["name"] == "joiner.join"]
    assert (joined["trace_id"], joined["parent_id"]) == (trace.split("-")[1], trace.split("-")[2])
    assert joined["span_id"] == outcome.traceparents[0].split("-")[2]


def test_every_partition_ticks_steadily_and_the_watermark_follows_the_clock(fresh_broker, joiner) -> None:
    joiner()
    outcome = read_outcome(
        fresh_broker.bootstrap, lambda found: len(found.ticks) == PARTITIONS and all(len(ticks) >= 10 for ticks in found.ticks.values())
    )
    for partition in range(PARTITIONS):
        ticks = outcome.ticks[partition]
        numbers = [tick.tick for tick in ticks]
        assert numbers == sorted(set(numbers))
        # One every half second; on a machine that stands still some are left out, most are not.
        assert statistics.median(later - earlier for earlier, later in itertools.pairwise(numbers)) == TICK_MS
        behind_ms = [tick.tick - tick.watermark_ms for tick in ticks]
        assert all(behind >= -TICK_MS for behind in behind_ms) and statistics.median(behind_ms) < seconds(3) * 1e3


def test_ticks_follow_feedback_on_all_partitions_alike_however_long_the_interval_is(fresh_broker, joiner, traffic) -> None:
    joiner(tick_interval_ms=3_600_000)

    def is_contained(found, feedback) -> bool:
        return len(found.ticks) == PARTITIONS and all(ticks[-1].watermark_ms >= feedback.accepted_at_ms for ticks in found.ticks.values())

    for _ in range(3):
        feedback = traffic.answer(traffic.expose())
        traffic.producer.flush()
        outcome = read_outcome(fresh_broker.bootstrap, lambda found, feedback=feedback: is_contained(found, feedback))
        assert feedback.feedback_id in outcome.joined
    first, second = ([tick.tick for tick in ticks] for ticks in outcome.ticks.values())
    # At the start a partition may be open before the other one.
    shared = min(len(first), len(second))
    assert first[-shared:] == second[-shared:] and shared >= 3


def test_bad_records_are_set_aside_with_their_reasons_and_hold_nothing_up(fresh_broker, joiner, traffic) -> None:
    joiner()
    exposure = traffic.expose()
    traffic.send("feedback.v1", exposure.user_id, b"\xff\xff")
    traffic.send("feedback.v1", exposure.user_id, b"{}", headers=[("content-type", b"application/json")])
    traffic.send("exposures.v1", exposure.user_id, b"\xff\xff")
    unknown_kind = traffic.answer(exposure, kind="sneeze")
    traffic.demonstrate(exposure.user_id)  # not set aside: the curator's
    not_shown = traffic.answer(exposure, item_id="never shown")
    orphan = traffic.answer(traffic.expose(send=False))
    no_number = traffic.answer(exposure, value=float("inf"))
    not_rated = traffic.answer(exposure, value=0.0)  # as many systems write "not rated"
    foreign = traffic.expose(schema_hash="0" * 16)
    good = traffic.answer(exposure)
    traffic.producer.flush()
    outcome = read_outcome(fresh_broker.bootstrap, lambda found: len(found.dead_letters) >= 9)
    assert outcome.joined == {good.feedback_id}
    one_each = dict.fromkeys(("unknown_kind", "value_out_of_range", "item_not_exposed", "orphan", "schema_mismatch"), 1)
    assert outcome.reasons == {"malformed": 4} | one_each
    assert "outside the range of kind 'rating', 1 to 5" in next(
        letter.detail for letter in outcome.dead_letters if letter.feedback_id == not_rated.feedback_id
    )
    by_id = {letter.feedback_id: letter for letter in outcome.dead_letters if letter.feedback_id}
    assert {by_id[each.feedback_id].reason for each in (unknown_kind, not_shown, orphan)} == {"unknown_kind", "item_not_exposed", "orphan"}
    assert by_id[orphan.feedback_id].value == orphan.SerializeToString()
    assert any(letter.value == no_number.SerializeToString() and "inf" in letter.detail for letter in outcome.dead_letters)
    assert any(letter.value == foreign.SerializeToString() for letter in outcome.dead_letters)


def test_json_feedback_of_a_third_party_is_joined(fresh_broker, joiner, traffic) -> None:
    joiner()
    exposure = traffic.expose()
    fields = {
        "feedbackId": "json-1", "requestId": exposure.request_id, "userId": exposure.user_id, "itemId": exposure.item_ids[0],
        "kind": "click", "value": None, "acceptedAtMs": time.time_ns() // 1_000_000,
    }  # fmt: skip
    for changed in ({"kind": "rating", "feedbackId": "json-0"}, {}):  # a null is no opinion, and a click needs none
        value = json.dumps(fields | changed).encode()
        traffic.send("feedback.v1", exposure.user_id, value, headers=[("content-type", b"application/json")])
    traffic.producer.flush()
    outcome = read_outcome(fresh_broker.bootstrap, lambda found: "json-1" in found.joined and bool(found.dead_letters))
    assert outcome.reasons == {"value_out_of_range": 1} and outcome.dead_letters[0].feedback_id == "json-0"


def test_records_on_the_wrong_partition_are_forwarded_and_joined(fresh_broker, joiner, traffic) -> None:
    joiner()
    exposure = traffic.expose(send=False)
    wrong = 1 - partition_of(exposure.user_id.encode(), PARTITIONS)
    traffic.send("exposures.v1", exposure.user_id, exposure.SerializeToString(), partition=wrong)
    feedback = traffic.answer(exposure)
    traffic.producer.flush()
    assert feedback.feedback_id in read_outcome(fresh_broker.bootstrap, lambda found: bool(found.joined)).joined


@pytest.fixture
def has_committed(fresh_broker) -> Iterator[Callable[[], bool]]:
    """Whether the group has committed an offset of exposures.v1 for every partition."""
    group, partitions = "tunemesh-joiner", [TopicPartition("exposures.v1", number) for number in range(PARTITIONS)]
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=fresh_broker.bootstrap)) as admin:
        yield lambda: all(found.offset > 0 for found in admin.list_group_offsets({group: partitions})[group].values())


# Seconds of life after taking its partitions up, of the last one at least; None: killed while it still joins the group.
@pytest.mark.parametrize("lives", [[3.0], pytest.param([3.0, None, 12.0], marks=pytest.mark.deep)], ids=["once", "again and again"])
def test_a_joiner_that_is_killed_loses_no_feedback_and_makes_no_sample_anew(fresh_broker, joiner, traffic, has_committed, lives) -> None:
    # Feedback from just before its window's end may come late to the log, on a busy machine: the joiner then still has the window open.
    patient = {"idle_allowance_ms": 2_000}
    processes = [joiner(**patient)]
    lives = list(lives)
    num_lives = len(lives)
    born = 0.0

    def die(elapsed: float) -> None:
        nonlocal born
        if not lives:
            return
        if lives[0] is not None and not processes[-1].has_said("taken up", count=PARTITIONS):
            born = elapsed
        elif elapsed - born >= (2.0 if lives[0] is None else lives[0]) and (len(lives) > 1 or has_committed()):
            lives.pop(0)
            processes[-1].kill()
            processes.append(joiner(wait=False, **patient))
            born = elapsed

    traffic.run(seconds(120), per_second=60, tick=die, until=lambda: not lives and processes[-1].has_said("taken up", count=PARTITIONS))
    assert len(processes) == num_lives + 1
    everybody = {feedback.feedback_id for feedback in traffic.feedback}
    wanted = plain_join(traffic)

    def is_over(found) -> bool:
        aside = {letter.feedback_id for letter in found.dead_letters}
        return everybody <= found.joined | aside and wanted.keys() <= found.samples.keys()

    outcome = read_outcome(fresh_broker.bootstrap, is_over, timeout_s=120.0)
    # Nobody is an orphan: all exposures are in the log, and what was joined before a death is not taken for one after it.
    assert outcome.reasons == {}
    assert outcome.joined == everybody
    # Every sample is one that the two logs call for; none is missing.
    assert {identity: (sample.item_id, sample.revision) for identity, sample in outcome.samples.items()} == wanted
    for sample in outcome.samples.values():
        if sample.revision == 1 and sample.retracts_negative:
            request = next(each.request_id for each in traffic.feedback if each.feedback_id == sample.feedback_id)
            assert sample_id(request, sample.item_id, 0) in wanted
    assert "exposures.v1 from offset 0," not in processes[-1].log.read_text(), "the last one reads from where its predecessor committed"


def plain_join(traffic: Traffic) -> dict[int, tuple[str, int]]:
    """Return (item, revision) by sample id of all samples that the two logs call for, by a plain restatement of the join."""
    exposures = {exposure.request_id: exposure for exposure in traffic.exposures}
    answered: dict[tuple[str, str], list] = {}
    for feedback in sorted(traffic.feedback, key=lambda each: each.accepted_at_ms):
        answered.setdefault((feedback.request_id, feedback.item_id), []).append(feedback)
    wanted: dict[int, tuple[str, int]] = {}
    for (request_id, item_id), acts in answered.items():
        for revision in range(1, len(acts) + 1):
            wanted[sample_id(request_id, item_id, revision)] = (item_id, revision)
        is_late = acts[0].accepted_at_ms >= exposures[request_id].exposed_at_ms + WINDOW_MS
        if is_late and item_id in kept_items(exposures[request_id]):
            wanted[sample_id(request_id, item_id, 0)] = (item_id, 0)
    for exposure in exposures.values():
        for item_id in kept_items(exposure):
            if (exposure.request_id, item_id) not in answered:
                wanted[sample_id(exposure.request_id, item_id, 0)] = (item_id, 0)
    return wanted


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TUNEMESH_FEATURE_SPEC", "/nowhere.yaml", "feature spec /nowhere.yaml"),
        ("TUNEMESH_JOINER_WINDOW_MS", "soon", "TUNEMESH_JOINER_WINDOW_MS"),
        ("TUNEMESH_JOINER_WINDOWS_MS", "1", "did you mean TUNEMESH_JOINER_WINDOW_MS"),
        ("TUNEMESH_USER_PARTITIONS", "3", "topic exposures.v1 has 2 partition(s), TUNEMESH_USER_PARTITIONS is 3"),
    ],
)
def test_a_wrong_configuration_ends_with_one_line(fresh_broker, mesh_topics, tmp_path, variable, value, said) -> None:
    mesh_topics(fresh_broker.bootstrap, user_partitions=PARTITIONS)
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": fresh_broker.bootstrap, "TUNEMESH_JOINER_PORT": "0", "TUNEMESH_TELEMETRY_DIR": str(tmp_path),
        variable: value,
    }  # fmt: skip
    process = Process("streams.joiner", tmp_path / "joiner.log", env)
    assert process.wait() == 2
    lines = [line for line in process.log.read_text().splitlines() if "configuration error" in line]
    assert len(lines) == 1 and said in lines[0]
    assert "Traceback" not in process.log.read_text()
