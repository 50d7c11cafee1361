"""`python -m loadtests.load` in a process of its own, against a router of this test that can stall, refuse and cut streams."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from tunemesh.common.v1 import chat_pb2, recommendation_pb2
from tunemesh.events.v1 import feedback_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2 as collector_pb2
from tunemesh.feedback_collector.v1 import feedback_collector_service_pb2_grpc as collector_grpc
from tunemesh.router.v1 import router_service_pb2 as router_pb2
from tunemesh.router.v1 import router_service_pb2_grpc as router_grpc

from loadtests.load.calls import Call, read_calls
from services.common.events.topics import FEEDBACK
from services.common.platform.kafka import assigned_consumer, drain_to_end
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.topics import create_topics
from tests.conftest import Broker
from tests.limits import seconds

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

RUN_S, STALL_AT_S, STALL_S = 6, 2.0, 2.0
RATE = 40
NUM_CALLS = RATE * RUN_S
# The stall must not time out, on a machine that stands still for a while either.
PATIENT = ("--attempt-timeout", f"{seconds(15)}", "--deadline", f"{seconds(40)}")
HANG_S = 10.0
CUT = "the answer was cut after 2 tokens"


class StallingRouter(router_grpc.RouterServiceServicer):
    """Answers at once, but for one time in which nobody is answered; refuses every 10th first attempt; cuts every third stream."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self.stall_s = stall_s
        self._lock = threading.Lock()  # at the stall's end all of its calls go on at once
        self.begin_s = 0.0
        self.num_streams = 0
        self.keys: list[str] = []
        self.questions: list[str] = []

    def Recommend(self, request: router_pb2.RecommendRequest, context: grpc.ServicerContext) -> router_pb2.RecommendResponse:
        now_s = time.monotonic()
        self.begin_s = self.begin_s or now_s
        stall_end_s = self.begin_s + STALL_AT_S + self.stall_s
        if self.begin_s + STALL_AT_S <= now_s < stall_end_s:
            time.sleep(stall_end_s - now_s)
        with self._lock:
            is_new = request.idempotency_key not in self.keys
            self.keys.append(request.idempotency_key)
            number, num_different = len(self.keys), len(set(self.keys))
        if is_new and num_different % 10 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        items = [recommendation_pb2.RankedItem(item_id=item) for item in request.candidates[: request.limit]]
        return router_pb2.RecommendResponse(request_id=f"r{number}", items=items)

    def Generate(self, request: router_pb2.GenerateRequest, context: grpc.ServicerContext) -> Iterator[router_pb2.GenerateResponse]:
        with self._lock:
            self.num_streams += 1
            number = self.num_streams
            self.questions.append(request.question)
        is_cut = number % 3 == 0
        yield router_pb2.GenerateResponse(header=router_pb2.GenerateHeader(request_id=f"g{number}"))
        time.sleep(0.1)
        for word in ("a ", "film"):
            yield router_pb2.GenerateResponse(text=word)
        if is_cut:
            context.abort(grpc.StatusCode.UNAVAILABLE, CUT)
        yield router_pb2.GenerateResponse(finish_reason="stop", usage=chat_pb2.TokenUsage(completion_tokens=2))


class Collector(collector_grpc.FeedbackCollectorServiceServicer):
    def __init__(self, hangs: threading.Event | None = None) -> None:
        self.feedback: list[feedback_pb2.Feedback] = []
        self._hangs = hangs

    def SubmitFeedback(
        self, request: collector_pb2.SubmitFeedbackRequest, context: grpc.ServicerContext
    ) -> collector_pb2.SubmitFeedbackResponse:
        if self._hangs is not None:
            self._hangs.wait()
        self.feedback += request.feedback
        return collector_pb2.SubmitFeedbackResponse(
            receipts=[collector_pb2.FeedbackReceipt(feedback_id=act.feedback_id) for act in request.feedback]
        )


def load(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.load", "--out", str(out), "--run-dir", str(out / "no-mesh"), *options]
    return subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(240), check=False)


class Loaded:
    """What one run left behind."""

    def __init__(self, out: Path, router: StallingRouter, collector: Collector, logged: list[str]) -> None:
        self.out, self.router, self.collector, self.logged = out, router, collector, logged
        self.calls: list[Call] = list(read_calls(out / "calls.jsonl"))
        self.summary: dict[str, Any] = json.loads((out / "summary.json").read_text())

    def of(self, kind: str) -> list[Call]:
        return [call for call in self.calls if call.kind == kind]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    out = tmp_path_factory.mktemp("load")
    broker = Broker(out / "broker")
    create_topics(broker.bootstrap, {FEEDBACK.name: 2})
    router, collector = StallingRouter(), Collector()
    server = grpc.server(futures.ThreadPoolExecutor(200))
    router_grpc.add_RouterServiceServicer_to_server(router, server)
    collector_grpc.add_FeedbackCollectorServiceServicer_to_server(collector, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    rates = ("--recommend", f"{RATE}", "--feedback-grpc", "4x3,8x3", "--feedback-kafka", "5", "--streams", "2", "--seconds", f"{RUN_S}")
    done = load(out, "--router", address, "--collector", address, "--kafka", broker.bootstrap, "--candidates", "5", *rates, *PATIENT)
    server.stop(None)
    assert done.returncode == 0, done.stdout + done.stderr
    consumer = assigned_consumer(broker.bootstrap, FEEDBACK.name, start="beginning", client_id="test")
    logged = [feedback_pb2.Feedback.FromString(record.value).feedback_id for record in drain_to_end(consumer)]
    consumer.close()
    broker.kill()
    return Loaded(out, router, collector, logged)


def test_every_call_is_started_when_it_is_due_although_the_server_stalls(loaded):
    calls = loaded.of("recommend")
    assert len(calls) == NUM_CALLS
    due = sorted(call.planned_s for call in calls)
    assert all(abs(later - earlier - 1 / RATE) < 0.001 for earlier, later in itertools.pairwise(due))
    begin_s = due[0]
    end_s = begin_s + STALL_AT_S + STALL_S
    during_stall = [call.late_ms for call in calls if begin_s + STALL_AT_S + 0.1 <= call.planned_s < end_s - 0.1]
    otherwise = [call.late_ms for call in calls if not begin_s + STALL_AT_S <= call.planned_s < end_s]
    # A closed loop would start them when the stall is over: one half of them later than by half of its length.
    assert statistics.median(during_stall) < statistics.median(otherwise) + 1e3 * STALL_S / 4


def test_a_stall_is_seen_by_every_call_that_was_due_in_it(loaded):
    """A closed loop with a few workers would have seen it a few times only."""
    slow = [call for call in loaded.of("recommend") if call.latency_ms > 200]
    assert len(slow) >= 0.7 * RATE * (STALL_S - 0.2)
    assert loaded.summary["calls"]["recommend"]["longest_gap_s"] >= STALL_S - 0.6


def test_a_refused_call_is_repeated_with_its_idempotency_key(loaded):
    found = loaded.summary["calls"]["recommend"]
    assert found["failed"] == 0
    assert found["retried"] == NUM_CALLS // 10
    assert len(loaded.router.keys) == NUM_CALLS + NUM_CALLS // 10
    assert len(set(loaded.router.keys)) == NUM_CALLS
    assert {call.detail for call in loaded.of("recommend") if call.attempts == 2} == {"not now"}


def test_two_streams_are_kept_open_and_each_cut_is_logged_with_its_status(loaded):
    calls = loaded.of("generate")
    assert len(calls) == loaded.router.num_streams
    cut = [call for call in calls if not call.ok]
    assert len(cut) == len(calls) // 3
    assert {(call.status, call.detail, call.tokens) for call in cut} == {("UNAVAILABLE", CUT, 2)}
    whole = loaded.summary["calls"]["generate"]
    assert whole["cut"] == len(cut)
    assert 100 <= whole["first_text_ms"]["p50"] <= whole["latency_ms"]["p50"]
    assert all(question for question in loaded.router.questions)


def test_each_feedback_names_an_answer_once_and_is_logged_when_it_is_acknowledged(loaded):
    by_grpc, by_kafka = loaded.of("feedback_grpc"), loaded.of("feedback_kafka")
    assert (len(by_grpc), len(by_kafka)) == (36, 5 * RUN_S)
    first_answer_s = min(call.ended_s for call in loaded.of("recommend") if call.ok)
    assert all(call.ok for call in by_grpc + by_kafka if call.started_s > first_answer_s + 0.5)
    assert sum(call.ok for call in by_grpc) >= 15
    assert sum(call.ok for call in by_kafka) >= 10
    assert {item.feedback_id for item in loaded.collector.feedback} == {call.feedback_id for call in by_grpc if call.ok}
    assert set(loaded.logged) == {call.feedback_id for call in by_kafka if call.ok}
    assert {item.kind: bool(item.item_id) for item in loaded.collector.feedback} == {"rating": True, "score": False}
    reported = [call.request_id for call in by_grpc + by_kafka if call.ok]
    assert len(reported) == len(set(reported))


def test_the_report_the_plot_and_the_summary_are_written(loaded):
    html = (loaded.out / "report.html").read_text()
    assert "Recommend" in html and "SubmitFeedback" in html and "Generate: first text" in html
    assert (loaded.out / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert loaded.summary["rates"]["feedback_grpc"] == [[4.0, 3.0], [8.0, 3.0]]
    assert set(loaded.summary["calls"]) == {"recommend", "generate", "feedback_grpc", "feedback_kafka"}


def test_calls_that_hang_do_not_slow_the_others(tmp_path):
    hangs = threading.Event()
    server = grpc.server(futures.ThreadPoolExecutor(300))
    router_grpc.add_RouterServiceServicer_to_server(StallingRouter(stall_s=0.0), server)
    collector_grpc.add_FeedbackCollectorServiceServicer_to_server(Collector(hangs), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    options = ("--recommend", "40", "--feedback-grpc", "30", "--feedback-kafka", "0", "--seconds", "6", "--candidates", "5")
    done = load(
        tmp_path, "--router", address, "--collector", address, *options, "--attempt-timeout", f"{HANG_S}", "--deadline", f"{HANG_S}"
    )
    hangs.set()
    server.stop(None)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = list(read_calls(tmp_path / "calls.jsonl"))
    hung = [call for call in calls if call.kind == "feedback_grpc" and call.counts]
    assert len(hung) > 100
    assert {call.status for call in hung} == {"DEADLINE_EXCEEDED"}
    late = [call.latency_ms for call in calls if call.kind == "recommend" and call.planned_s > hung[0].planned_s + 3.0]
    assert statistics.median(late) < 1e3 * HANG_S / 4  # a pool that the hanging calls fill makes them wait until those end


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "no mesh is up in"),
        (("--router", "127.0.0.1:1", "--recommend", "many"), "--recommend 'many': use RATE"),
        (("--router", "127.0.0.1:1", "--feedback-kafka", "0"), "feedback_grpc has no address: give --collector, or --feedback-grpc 0"),
        (("--router", "127.0.0.1:1", "--recommend", "0", "--feedback-grpc", "0", "--feedback-kafka", "0"), "there is nothing to do"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(tmp_path, options, reason):
    done = load(tmp_path, *options)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_in_which_no_call_succeeds_exits_with_1_and_says_why(tmp_path):
    options = ("--recommend", "5", "--feedback-grpc", "0", "--feedback-kafka", "0", "--streams", "0", "--seconds", "1", "--deadline", "1")
    done = load(tmp_path, "--router", "127.0.0.1:1", *options)
    assert done.returncode == 1, done.stderr
    assert "× UNAVAILABLE" in done.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["calls"]["recommend"]["failed"] == 5
