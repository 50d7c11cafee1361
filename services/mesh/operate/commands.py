"""The operator's commands: parsed arguments in, calls of this package, a table or JSON out; command_line.py names them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from services.common.events.topics import ALL, Topic
from services.common.platform.clock import wall_ms
from services.common.platform.errors import CorruptArtifact, InvalidInput, ServiceError
from services.common.platform.settings import EXIT_BAD_CONFIGURATION, load_settings
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.lineage import find, lineages
from services.mesh.operate import aliases, documents, ranker, screen
from services.mesh.operate.addresses import Addresses, Part
from services.mesh.operate.letter_book import counted
from services.mesh.operate.lineage import RANKER, document_of_features, document_of_version, kept_versions, version_of
from services.mesh.operate.log_scan import LogScanner
from services.mesh.operate.redrive import Redrive, read_book
from services.mesh.operate.rpc import Client, connect
from services.mesh.operate.settings import OperateSettings
from services.mesh.operate.times import iso, parse_moment
from services.mesh.operate.why import explain
from services.mesh.operate.why_report import Learned
from services.mesh.runner.settings import MeshSettings

Command = Callable[["Operator", argparse.Namespace], int]


class Operator:
    """What a command needs of the mesh. Close it to close the connections."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Reads the settings and the run folder's state; connects nothing.

        Raises:
            ConfigurationError: a setting is wrong.
        """
        self.settings = load_settings(OperateSettings)
        run_dir = arguments.run_dir or load_settings(MeshSettings).run_dir
        self._run_dir = Path(run_dir)
        self._addresses = Addresses(self.settings, run_dir)
        self._channels = ExitStack()

    def client(self, part: str) -> Client:
        """Return the client of a part, open until `close`."""
        name = cast(Part, part)
        return self._channels.enter_context(connect(part.replace("_", " "), self._addresses.of(name), self._addresses.hint(name)))

    @property
    def feature_spec(self) -> FeatureSpec:
        """What the mesh's features mean.

        Raises:
            ConfigurationError: the file is missing or wrong.
        """
        return FeatureSpec.load(self._addresses.feature_spec)

    @property
    def kafka(self) -> str:
        """The broker's address."""
        return self._addresses.of("kafka")

    @property
    def artifacts_url(self) -> str:
        """Where artifacts are: as set, else in the folder of the mesh's run."""
        return self.settings.artifacts_url or str(self._run_dir / "volumes" / "artifacts")

    def scanner(self) -> LogScanner:
        """Return a reader of the mesh's logs."""
        return LogScanner(self.kafka, timeout_ms=self.settings.kafka_timeout_ms, max_records=self.settings.scan_records)

    def close(self) -> None:
        """Close what `client` opened."""
        self._channels.close()


def run(name: str, arguments: argparse.Namespace) -> int:
    """Run one command and return its exit code; what cannot be done is one line on stderr and code 1.

    Arguments that make no sense are one line and code 2.

    Raises:
        ConfigurationError: a setting makes no sense.
    """
    operator = Operator(arguments)
    try:
        return _COMMANDS[name](operator, arguments)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    except (ServiceError, CorruptArtifact) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        operator.close()


def _why(operator: Operator, arguments: argparse.Namespace) -> int:
    settings = operator.settings
    report = explain(
        arguments.request_id,
        operator.scanner(),
        operator.feature_spec,
        before_ms=settings.scan_before_ms,
        after_ms=settings.scan_after_ms,
        learned=lambda: _learned(operator),
    )
    if arguments.json:
        screen.print_json(report)
    elif report["kind"] == "recommendation":
        screen.print_recommendation(report)
    else:
        screen.print_generation(report)
    return 0


def _learned(operator: Operator) -> Learned | None:
    """How far the trainer is; None, with a line that says so, when it does not answer: the logs tell the rest."""
    try:
        status = ranker.status(operator.client("trainer"), timeout_ms=operator.settings.rpc_timeout_ms)
    except ServiceError as error:
        print(f"whether samples are learned is not known: {error}", file=sys.stderr)
        return None
    passed_over = tuple((part.partition, part.first_offset, part.end_offset) for part in status.passed_over)
    return Learned(f"{status.epoch}.{status.seq}", tuple(status.source_offsets), passed_over)


def _rollback(operator: Operator, arguments: argparse.Namespace) -> int:
    if arguments.alias == "ranker":
        if not arguments.to:
            raise InvalidInput("rollback ranker needs --to TIME or --to EPOCH.SEQ: what to go back to, e.g. --to 10m or --to 3.1207")
        return _restore(operator, arguments, arguments.to, skip_later=True)
    settings = operator.settings
    alias = aliases.parse_alias(arguments.alias)
    follower = aliases.follower_of(alias, operator.client, timeout_ms=settings.rpc_timeout_ms, load_timeout_ms=settings.restore_timeout_ms)
    moved = aliases.move(
        alias,
        arguments.to,
        operator.client("trainer"),
        follower,
        allow_unjudged=arguments.allow_unjudged,
        timeout_ms=settings.rpc_timeout_ms,
    )
    live_s = aliases.wait_until_live(moved, follower, wait_ms=settings.wait_ms)
    document = {"alias": alias, "from": moved.before, "to": moved.after, "version": moved.version, "live_after_s": round(live_s, 3)}
    _print(arguments, document, f"{alias}: {moved.before} -> {moved.after}; live after {live_s:.2f} s")
    return 0


def _retrain(operator: Operator, arguments: argparse.Namespace) -> int:
    return _restore(operator, arguments, arguments.since, skip_later=False)


def _restore(operator: Operator, arguments: argparse.Namespace, moment: str, *, skip_later: bool) -> int:
    settings = operator.settings
    not_after = parse_moment(moment, now_ms=wall_ms())
    actor = "tunemesh rollback" if skip_later else "tunemesh retrain"
    trainer = operator.client("trainer")
    done = ranker.restore(trainer, not_after, skip_later=skip_later, actor=actor, timeout_ms=settings.restore_timeout_ms)
    live_s, replicas = ranker.wait_for_replicas(operator.scanner(), done.epoch, done.restored_at_s, wait_ms=settings.wait_ms)
    document = {
        "checkpoint": done.checkpoint,
        "version": done.version,
        "written_at": iso(done.created_at_ms),
        "epoch": done.epoch,
        "source_offsets": list(done.source_offsets),
        "skipped": list(done.skipped),
        "replicas": replicas,
        "live_after_s": round(live_s, 3),
    }
    later = f"{sum(done.skipped)} later samples are passed over" if skip_later else "the later samples are learned again"
    back = f"{done.checkpoint}, version {done.version}, written {iso(done.created_at_ms)}"
    text = f"the ranker is back at {back}, as epoch {done.epoch}; {later}; {len(replicas)} "
    _print(arguments, document, f"{text}replica(s) live after {live_s:.2f} s")
    return 0


def _set_paused(operator: Operator, arguments: argparse.Namespace) -> int:
    timeout_ms = operator.settings.rpc_timeout_ms
    learner = ranker.set_paused(operator.client("trainer"), arguments.is_paused, timeout_ms=timeout_ms)
    state = "is paused; heartbeats go on" if learner.is_paused else "learns"
    refused = f"; its last delta was refused: {learner.publishing_refused}" if learner.publishing_refused else ""
    lines = [f"the ranker {state} (version {learner.version}, {learner.samples_trained} samples trained){refused}"]
    document: dict[str, Any] = {"ranker": asdict(learner), "tuner": None}
    try:
        tuning = ranker.tuning(operator.client("tuner"), timeout_ms=timeout_ms)
    except ServiceError as error:
        print(f"how the tuner stands is not known: {error}", file=sys.stderr)
    else:
        document["tuner"] = asdict(tuning)
        running = f"; tune {tuning.running_tune_id} goes on" if tuning.running_tune_id else ""
        lines.append(
            f"the tuner {'begins no tunes by itself' if tuning.is_paused else 'begins tunes when there is enough to learn'}{running}"
        )
    _print(arguments, document, "\n".join(lines))
    return 0 if learner.is_paused == arguments.is_paused else 1


def _list_letters(operator: Operator, arguments: argparse.Namespace) -> int:
    if arguments.topic:
        return _list_topic(operator, arguments, _topic(arguments.topic))
    rows = []
    for topic in ALL:
        for row in read_book(operator.scanner(), topic).summary():
            first, last = iso(cast(int, row.pop("first_ms"))), iso(cast(int, row.pop("last_ms")))
            if not arguments.reason or row["reason"] == arguments.reason:
                rows.append({"topic": topic.name, **row, "first": first, "last": last})
    if arguments.json:
        screen.print_json(rows)
    else:
        screen.print_rows(rows, empty="there are no dead letters")
    return 0


def _list_topic(operator: Operator, arguments: argparse.Namespace, topic: Topic) -> int:
    letters = list(read_book(operator.scanner(), topic).letters.values())
    rows = [
        {
            "letter": str(letter.name),
            "reason": letter.body.reason,
            "detail": letter.body.detail,
            "feedback_id": letter.body.feedback_id,
            "at": iso(letter.body.failed_at_ms),
            "state": letter.state,
        }
        for letter in letters
        if not arguments.reason or letter.body.reason == arguments.reason
    ]
    shown = rows[: arguments.limit]
    if arguments.json:
        screen.print_json(shown)
    else:
        screen.print_rows(shown, empty=f"there are no dead letters of {topic.name}")
        if len(rows) > len(shown):
            print(f"… {len(rows) - len(shown)} more (--limit)")
    return 0


def _redrive(operator: Operator, arguments: argparse.Namespace) -> int:
    topic = _topic(arguments.topic)
    redrive = Redrive(operator.kafka, operator.scanner(), topic, operator.settings.kafka_compression)
    done = redrive.run(reason=arguments.reason, limit=arguments.limit, again=arguments.again)
    document = {
        "topic": topic.name,
        "redriven": len(done.sent),
        "by_reason": counted(done.sent),
        "sent_by_an_interrupted_run": len(done.found_sent),
        "left_to_another_run": done.left_to_others,
        "left_for_next_time": done.not_taken,
        "refused": [f"{letter.name}: {cause}" for letter, cause in done.refused],
        "cannot_be_redriven": dict(done.why_not),
    }
    if arguments.json:
        screen.print_json(document)
    else:
        screen.print_fields(document)
    return 0


def _lineage(operator: Operator, arguments: argparse.Namespace) -> int:
    kept = kept_versions(operator.artifacts_url)
    name = arguments.name
    if name == RANKER or name.startswith(f"{RANKER}/"):
        document = document_of_version(version_of(kept, name))
        if arguments.json:
            screen.print_json(document)
        else:
            screen.print_version(document)
        return 0
    features = lineages(operator.feature_spec)
    rows = document_of_features(find(features, name) if name else features, kept)
    if arguments.json:
        screen.print_json(rows)
    else:
        screen.print_lineage(rows)
    return 0


def _documents(operator: Operator, arguments: argparse.Namespace) -> int:
    found = documents.document(operator.client("retriever"), timeout_ms=operator.settings.rpc_timeout_ms)
    if arguments.json:
        screen.print_json(found)
    else:
        screen.print_documents(found)
    return 0


def _topic(name: str) -> Topic:
    """Return the source topic of a name that is its own or that of its dead-letter topic."""
    for topic in ALL:
        if name in (topic.name, topic.dlq):
            return topic
    raise InvalidInput(f"{name!r} has no dead letters; these have: {', '.join(topic.name for topic in ALL)}")


def _print(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    if arguments.json:
        screen.print_json(document)
    else:
        print(text)


_COMMANDS: Mapping[str, Command] = {
    "why": _why,
    "rollback": _rollback,
    "retrain": _retrain,
    "set_paused": _set_paused,
    "list_letters": _list_letters,
    "redrive": _redrive,
    "documents": _documents,
    "lineage": _lineage,
}
