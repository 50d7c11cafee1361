"""One run: the parts made from the options, Locust's runner around them, and the files at the end. Imports Locust: see `users`."""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any

import gevent
from locust.html import get_html_report
from locust.runners import STATE_STOPPED
from locust.stats import stats_history

from loadtests.load import targets
from loadtests.load.arrivals import Arrivals
from loadtests.load.calls import Call, CallLog
from loadtests.load.clients import Answers, CollectorClient, ProducerClient, Retrying, RouterClient, SteadyClock, open_client
from loadtests.load.plot import write_plot
from loadtests.load.summary import summarise
from loadtests.load.users import CollectorUser, GenerateUser, KafkaProducerUser, LoadEnvironment, RecommendUser, StreamUser
from loadtests.load.workload import Workload
from loadtests.movielens import load_films
from services.common.platform.errors import ConfigurationError
from services.common.platform.settings import exit_with_configuration_error

_MAX_CALLS = 1_000_000
_LIMIT = 20
_SCHEDULED = {"recommend": RecommendUser, "generate": GenerateUser, "feedback_kafka": KafkaProducerUser, "feedback_grpc": CollectorUser}


class Run:
    """One run: its parts, made from the options."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Connects nothing.

        Raises:
            ConfigurationError: a rate, a number or an address is wrong. One line.
        """
        self._options = options
        self.targets = targets.find(options.run_dir, router=options.router, collector=options.collector, kafka=options.kafka)
        self.num_streams = (2 if self.targets.has_llm and not options.router else 0) if options.streams is None else options.streams
        self.arrivals = _arrivals(options)
        self._check()
        clock, answers = SteadyClock(), Answers()
        retrying = Retrying(clock, attempt_timeout_s=options.attempt_timeout, deadline_s=options.deadline)
        self._client = open_client(self.targets.router, self.targets.collector, stream_timeout_s=options.stream_timeout)
        self._router = RouterClient(self._client, clock, retrying, answers)
        self._collector = CollectorClient(self._client, retrying, answers)
        self._producer = ProducerClient(self.targets.kafka, retrying, answers) if self.targets.kafka else None
        films = list(load_films().values())
        self._workload = Workload(films, num_users=options.users, num_candidates=options.candidates, seed=options.seed)
        self._clock = clock

    def execute(self, log: CallLog) -> LoadEnvironment:
        """Put the load on and return when the last call has ended; SIGINT or SIGTERM ends the schedules early.

        Raises:
            Exception: an error of this program; what the mesh refuses is in the log.
        """
        streams_s = max((plan.duration_s for plan in self.arrivals.values()), default=self._options.seconds)
        classes: list[Any] = [_SCHEDULED[kind] for kind in self.arrivals]
        if self.num_streams:
            classes.append(type("Streams", (StreamUser,), {"fixed_count": self.num_streams}))
        environment = LoadEnvironment(
            clock=self._clock,
            log=log,
            performs={
                "recommend": self._recommend,
                "generate": self._generate,
                "feedback_kafka": self._produce,
                "feedback_grpc": self._submit,
            },
            arrivals=self.arrivals,
            streams_s=streams_s,
            max_outstanding=self._options.max_outstanding,
            patience_s=max(self._options.deadline, self._options.stream_timeout if self._has_streams else 0.0) + 5.0,
            user_classes=classes,
        )
        runner = environment.create_local_runner()
        history = gevent.spawn(stats_history, runner)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, environment.stopping.set)
        runner.start_shape()
        while runner.state != STATE_STOPPED:
            gevent.sleep(0.1)
        history.kill()
        runner.quit()
        self._close()
        if environment.failure is not None:
            raise environment.failure
        return environment

    @property
    def _has_streams(self) -> bool:
        return self.num_streams > 0 or "generate" in self.arrivals

    def _recommend(self, call: Call) -> None:
        self._router.recommend(call, self._workload.user(), self._workload.candidates(), limit=_LIMIT)

    def _generate(self, call: Call) -> None:
        options = self._options
        self._router.generate(call, self._workload.user(), self._workload.question(), task=options.task, max_tokens=options.max_tokens)

    def _produce(self, call: Call) -> None:
        assert self._producer is not None
        self._producer.report(call, self._workload.liking())

    def _submit(self, call: Call) -> None:
        self._collector.report(call, self._workload.liking())

    def _close(self) -> None:
        self._client.close()
        if self._producer is not None:
            self._producer.close()

    def _check(self) -> None:
        expected = sum(plan.expected for plan in self.arrivals.values())
        if expected > _MAX_CALLS:
            raise ConfigurationError(f"{expected:,.0f} calls are more than the {_MAX_CALLS:,} that one run keeps: lower a rate or the time")
        if not self.arrivals and not self.num_streams:
            raise ConfigurationError("there is nothing to do: every rate is 0")
        for kind, option, address in (
            ("feedback_grpc", "collector", self.targets.collector),
            ("feedback_kafka", "kafka", self.targets.kafka),
        ):
            if kind in self.arrivals and not address:
                raise ConfigurationError(f"{kind} has no address: give --{option}, or --{kind.replace('_', '-')} 0")


def _arrivals(options: argparse.Namespace) -> dict[str, Arrivals]:
    """Return the schedules that have any arrival, by kind."""
    if options.streams is not None and not 0 <= options.streams <= 1000:
        raise ConfigurationError(f"--streams {options.streams} is not within 0 to 1000")
    if options.users < 1 or options.max_outstanding < 1 or not 0 <= options.candidates <= 1000:
        raise ConfigurationError("--users and --max-outstanding must be at least 1, --candidates within 0 to 1000")
    found: dict[str, Arrivals] = {}
    for number, kind in enumerate(_SCHEDULED):
        try:
            plan = Arrivals.parse(getattr(options, kind), seconds=options.seconds, spacing=options.spacing, seed=options.seed + number)
        except ValueError as error:
            raise ConfigurationError(f"--{kind.replace('_', '-')} {error}") from error
        if plan.expected > 0:
            found[kind] = plan
    return found


def _write(options: argparse.Namespace, run: Run, environment: LoadEnvironment, begun_s: float) -> dict[str, Any]:
    out: Path = options.out
    summary = {
        "begun_at": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(begun_s)),
        "seconds": round(time.time() - begun_s, 1),
        "targets": {"router": run.targets.router, "collector": run.targets.collector, "kafka": run.targets.kafka},
        "rates": {kind: [[stage.rate_per_s, stage.seconds] for stage in plan.stages] for kind, plan in run.arrivals.items()},
        "streams": run.num_streams,
        "spacing": options.spacing,
        "calls": summarise(environment.log.calls),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (out / "report.html").write_text(get_html_report(environment, show_download_link=False), encoding="utf-8")
    if environment.log.calls:
        write_plot(environment.log.calls, out / "latency.png", title=f"latency percentiles over time, {options.spacing} arrivals")
    return summary


def _print(summary: dict[str, Any], out: Path) -> None:
    print(f"{'':<15} {'due':>7} {'ok':>7} {'failed':>6} {'retried':>7} {'late':>5}   {'p50':>8} {'p95':>8} {'p99':>8}  ms since due")
    for kind, found in summary["calls"].items():
        latency = found["latency_ms"] or {}
        shown = " ".join(f"{latency.get(key, float('nan')):8.1f}" for key in ("p50", "p95", "p99"))
        counts = f"{found['planned']:>7} {found['succeeded']:>7} {found['failed']:>6} {found['retried']:>7} {found['late_starts']:>5}"
        print(f"{kind:<15} {counts}   {shown}")
        if found.get("first_text_ms"):
            first = " ".join(f"{found['first_text_ms'][key]:8.1f}" for key in ("p50", "p95", "p99"))
            print(f"{'  first text':<15} {'':>36}   {first}")
        for reason, number in list(found["failures"].items())[:5]:
            print(f"    {number} × {reason}")
    print(f"report: {out / 'report.html'}   plot: {out / 'latency.png'}   numbers: {out / 'summary.json'}   calls: {out / 'calls.jsonl'}")


def main(options: argparse.Namespace) -> int:
    """Run and report; 0 when any call succeeded, 1 when none did. Exits with 2, and one line, when an option is wrong."""
    try:
        run = Run(options)
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    begun_s = time.time()
    print(
        f"load for {max([plan.duration_s for plan in run.arrivals.values()] or [options.seconds]):g} s on {run.targets.router}", flush=True
    )
    with CallLog(options.out / "calls.jsonl") as log:
        environment = run.execute(log)
    summary = _write(options, run, environment, begun_s)
    _print(summary, options.out)
    return 0 if any(call.ok for call in environment.log.calls) else 1
