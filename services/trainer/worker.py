"""The ranker worker: one thread that reads samples, learns, publishes and checkpoints, and runs the control API's commands in between.

The thread owns every piece of the session; others hand it commands (`submit`) and read `status`, an immutable snapshot. Checkpoints are cut
in the thread and written by another one, while learning goes on. What it learns in which order is decided by `merge`, never by time.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter

from services.common.events.dead_letters import dead_letter
from services.common.platform.errors import Conflict, CorruptArtifact, Unavailable
from services.common.platform.telemetry import Telemetry, current_traceparent
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.merge import UnusableRecord
from services.trainer.prequential import TaskQuality
from services.trainer.restore import RawSample, RestoreRequest, SampleSource, decide
from services.trainer.samples import Learnable, UnusableSample, parse_record
from services.trainer.session import Session
from services.trainer.stores import Checkpoint, Counters

_log = logging.getLogger(__name__)

# A partition that is this far ahead of the others is not fetched from until they catch up.
_MAX_BUFFERED = 4_000
_POLL_MS = 50
_FINAL_FLUSH_MS = 5_000
_COMPLAINT_INTERVAL_S = 1.0
# A look at a broker that is away blocks the worker: not at every interval.
_LOOK_AGAIN_S = 3.0

Result = TypeVar("Result")


class DeadLetters(Protocol):
    """The dead-letter topic of samples.v1."""

    def send(self, letter: DeadLetter) -> None:
        """Start writing a letter."""

    def flush(self) -> None:
        """Return when every letter has been acknowledged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the control API shows. A snapshot."""

    lineage_id: str
    base_id: str
    epoch: int
    seq: int
    source_offsets: tuple[int, ...]
    watermark_ms: int
    counters: Counters
    paused: bool
    publishing_refused: str
    table_rows: Mapping[str, int]
    last_checkpoint: str
    prequential: Mapping[str, TaskQuality] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A durable checkpoint."""

    url: str
    state_hash: str
    source_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """A restore that has been done: which checkpoint, and where the new epoch goes on."""

    url: str
    created_at_ms: int
    epoch: int
    source_offsets: tuple[int, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The worker's pace."""

    samples_topic: str
    publish_interval_ms: int
    checkpoint_interval_ms: int


class _Outage:
    """Says once that something is away, and once that it is back."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def note(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            _log.warning("%s, trying again: %s", self._what, error)

    def end(self) -> None:
        if self._since is not None:
            _log.warning("over after %.0f s: %s", time.monotonic() - self._since, self._what)
            self._since = None


class RankerWorker:
    """Runs one session after the other until told to stop, or until it cannot go on."""

    def __init__(
        self,
        begin_epoch: Callable[[], Session],
        spec: FeatureSpec,
        source: SampleSource,
        dead_letters: DeadLetters,
        config: WorkerConfig,
        telemetry: Telemetry,
    ) -> None:
        """Begin an epoch, in the calling thread, which takes seconds; nothing is learned before `run`.

        Args:
            begin_epoch: opens a session from the newest checkpoint; called now, and again when a checkpoint is restored. The session
                belongs to the worker's thread from `run` on.
            spec: what samples must fit.
            source: positioned by the session.
            dead_letters: where unusable samples go.
            config: the pace.
            telemetry: of this process.
        Raises:
            ConfigurationError, CorruptArtifact, Unavailable: the epoch cannot begin.
        """
        self._begin_epoch = begin_epoch
        self._session = begin_epoch()
        self._spec = spec
        self._source = source
        self._dead_letters = dead_letters
        self._config = config
        self._telemetry = telemetry
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None
        self._last_checkpoint = ""
        self._checkpointed_offsets: list[int] = []
        self._paused = self._paused_by_gate = False
        self._failure: BaseException | None = None
        self._next_publish = self._next_checkpoint = self._next_complaint = self._next_watch = 0.0
        self._reading, self._watching = _Outage("samples cannot be read"), _Outage("control.v1 cannot be read")
        self._step_traces: list[str] = []
        self._unpublished_ms: list[int] = []
        meter = telemetry.meter
        self._samples_counter = meter.create_counter("trainer.samples", description="Samples learned.")
        self._unusable_counter = meter.create_counter("trainer.unusable", description="Sample records set aside, by reason.")
        self._step_ms = meter.create_histogram("trainer.step", unit="ms", description="Time of one micro-batch.")
        self._lag_ms = meter.create_histogram(
            "trainer.accepted_to_published", unit="ms", description="From a feedback's acceptance to its delta's acknowledgement."
        )
        self._status = self._snapshot({})

    @property
    def status(self) -> Status:
        """The newest snapshot. Any thread may read it."""
        return self._status

    def submit(self, command: Callable[[], Result]) -> Future[Result]:
        """Let the worker's thread run `command` between two micro-batches; any thread may call this."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(command())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)

        if self._stopping.is_set():
            raise Unavailable("the trainer is stopping: try again later")
        self._commands.put(run)
        return future

    def stop(self) -> None:
        """Ask `run` to end after the running micro-batch; any thread may call this."""
        self._stopping.set()

    # The commands of the control API; all run in the worker's thread, through `submit`.

    def pause(self) -> None:
        """Consume no samples until `resume`; heartbeats go on."""
        self._paused, self._paused_by_gate = True, False
        self._refresh()

    def resume(self) -> None:
        """Consume samples again."""
        self._paused = self._paused_by_gate = False
        self._refresh()

    def write_checkpoint(self) -> Written:
        """Write a checkpoint and return when it is durable.

        Raises:
            Conflict: the gate refuses what was learned; a restart should find what was learned before.
            Unavailable: the store cannot be written.
        """
        if self._session.publisher.refusal:
            raise Conflict(f"no checkpoint of weights that the gate refuses: {self._session.publisher.refusal}")
        self._await_writer()
        checkpoint, state_hash = self._session.cut(), self._session.learner.state_hash()
        url = self._write(checkpoint)
        self._note_checkpoint(url, checkpoint)
        return Written(url=url, state_hash=state_hash, source_offsets=tuple(checkpoint.cut.position.offsets))

    def publish_base(self) -> tuple[str, str]:
        """Publish a base and return its id and URL."""
        # A broker that is away is noticed here, sooner than by a delta that waits for it.
        self._session.check_ownership()
        self._await_writer()
        pointer = self._session.publish_base()
        self._refresh()
        return pointer.base_id, pointer.uri

    def restore(self, request: RestoreRequest) -> Restoration:
        """Go back to an older checkpoint, in a new epoch; return when replicas have what is in it.

        A pause that the gate had made ends, since its cause is gone; an operator's stays.

        Raises:
            NotFound, Conflict: nothing was changed, see `restore.decide`.
            Unavailable: the broker or the store does not answer. When the restore was decided by then, the message says so: the worker
                ends, and the next start completes it.
        """
        self._session.check_ownership()
        self._await_writer()
        try:
            decision = decide(self._session, self._source, self._spec, request)
            url = self._write(decision.checkpoint)
        except BaseException:
            self._session.rewind()
            raise
        try:
            session = self._begin_epoch()
        except BaseException as error:
            self._failure = error
            name = decision.target.checkpoint.cut.name
            raise Unavailable(f"{name} is to be restored, but its epoch could not begin; the next start does so: {error}") from error
        self._take_over(session, url)
        return Restoration(
            url=decision.target.url,
            created_at_ms=decision.target.created_at_ms,
            epoch=session.epoch,
            source_offsets=tuple(session.merge.position.offsets),
            skipped=decision.skipped,
        )

    def _take_over(self, session: Session, checkpoint_url: str) -> None:
        """Go on with the session of a restored checkpoint. A delta of the old one that is still on its way is refused by its epoch."""
        self._session = session
        if self._paused_by_gate:
            self._paused = self._paused_by_gate = False
        self._step_traces.clear()
        self._unpublished_ms.clear()
        self._last_checkpoint, self._checkpointed_offsets = checkpoint_url, session.merge.position.offsets
        self._refresh({})

    def run(self) -> None:
        """Work until `stop`; then flush, write a last checkpoint and return.

        Raises:
            Fenced: a newer trainer took over. Nothing more is published or written.
            HistoryLost: the broker no longer has what it had.
            Exception: the learner failed.
        """
        now = time.monotonic()
        self._next_publish = now + self._config.publish_interval_ms / 1e3
        self._next_checkpoint = now + self._config.checkpoint_interval_ms / 1e3
        try:
            while not self._stopping.is_set():
                self._between_batches()
                if self._paused:
                    time.sleep(_POLL_MS / 1e3)
                    continue
                self._consume()
                while not self._stopping.is_set() and not self._paused and (batch := self._session.merge.next_batch()) is not None:
                    self._learn(batch)
                    self._between_batches()
            self._finish()
        finally:
            self._stopping.set()
            self._writer.shutdown()

    def _consume(self) -> None:
        """Take what the partitions have, but let none run far ahead of the others."""
        merge = self._session.merge
        num_partitions = len(merge.position.partitions)
        self._source.hold([partition for partition in range(num_partitions) if merge.buffered(partition) >= _MAX_BUFFERED])
        wait_ms = min(_POLL_MS, max(int((self._next_publish - time.monotonic()) * 1e3), 0))
        try:
            records = self._source.poll(wait_ms)
        except Unavailable as error:
            self._reading.note(error)
            return
        if records:
            self._reading.end()
        for record in records:
            try:
                merge.push(record.partition, parse_record(self._spec, record.offset, record.value, record.headers))
            except UnusableSample as error:
                self._set_aside(record, error)
                merge.push(record.partition, UnusableRecord(record.offset))

    def _set_aside(self, record: RawSample, error: UnusableSample) -> None:
        topic = self._config.samples_topic
        now = time.monotonic()
        if now >= self._next_complaint:
            # A producer gone mad would fill the disk with log lines; the dead-letter topic has them all.
            self._next_complaint = now + _COMPLAINT_INTERVAL_S
            _log.warning("%s[%d] offset %d set aside (%s): %s", topic, record.partition, record.offset, error.reason, error)
        self._unusable_counter.add(1, {"reason": error.reason})
        self._session.note_unusable()
        self._dead_letters.send(
            dead_letter(
                topic=topic,
                partition=record.partition,
                offset=record.offset,
                reason=error.reason,
                detail=str(error),
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        )

    def _learn(self, batch: Sequence[Learnable]) -> None:
        started = time.perf_counter()
        with self._telemetry.span("trainer.step", links=[item.traceparent for item in batch]):
            num_samples = self._session.learn(batch)
            self._step_traces.append(current_traceparent())
        self._samples_counter.add(num_samples)
        self._step_ms.record((time.perf_counter() - started) * 1e3)

    def _between_batches(self) -> None:
        """Whatever is due: commands, publishing, a checkpoint."""
        while not self._commands.empty():
            self._commands.get()()
            if self._failure is not None:
                raise self._failure
        self._poll_publisher()
        now = time.monotonic()
        if now >= self._next_publish:
            self._next_publish = max(self._next_publish + self._config.publish_interval_ms / 1e3, now)
            self._watch_control()
            self._publish()
            self._refresh(self._session.learner.prequential())
        self._collect_written()
        if now >= self._next_checkpoint and self._writing is None:
            self._next_checkpoint = now + self._config.checkpoint_interval_ms / 1e3
            self._start_checkpoint()
        self._refresh()

    def _publish(self) -> None:
        """Start the next delta; when the last one is still on its way, its changes wait for the one after."""
        session = self._session
        if not session.publisher.is_idle:
            return
        with self._telemetry.span("trainer.publish_delta", links=self._step_traces):
            # A heartbeat belongs to no trace.
            traceparent = current_traceparent() if self._step_traces else ""
            session.publisher.publish(session.learner, session.merge.position, now_ms=session.now_ms(), traceparent=traceparent)
        self._step_traces.clear()
        if session.publisher.refusal and not self._paused:
            _log.error("learning is paused: repair the cause, then resume (TrainerService.ResumeLearning), or restart from a checkpoint")
            self._paused = self._paused_by_gate = True
        self._unpublished_ms += session.accepted_at_ms
        session.accepted_at_ms.clear()

    def _poll_publisher(self) -> None:
        publisher = self._session.publisher
        if not publisher.is_idle and publisher.poll(self._session.learner) and not publisher.refusal:
            now_ms = self._session.now_ms()
            for accepted_at_ms in self._unpublished_ms:
                # Below zero when the clock of whoever accepted it is ahead.
                self._lag_ms.record(max(now_ms - accepted_at_ms, 0))
            self._unpublished_ms.clear()

    def _watch_control(self) -> None:
        if time.monotonic() < self._next_watch:
            return
        try:
            self._session.check_ownership()
        except Unavailable as error:
            self._watching.note(error)
            self._next_watch = time.monotonic() + _LOOK_AGAIN_S
        else:
            self._watching.end()

    def _start_checkpoint(self) -> None:
        """Cut here, and write in the other thread. Nothing new: nothing to write."""
        offsets = self._session.merge.position.offsets
        if offsets == self._checkpointed_offsets or self._session.publisher.refusal:
            return
        checkpoint = self._session.cut()
        self._writing = self._writer.submit(self._write, checkpoint)
        self._checkpointed_offsets = offsets

    def _write(self, checkpoint: Checkpoint) -> str:
        # A record that was set aside lies below the checkpoint's offsets: it must not be lost with this process.
        self._dead_letters.flush()
        return self._session.stores.checkpoints.write(checkpoint, now_ms=self._session.now_ms())

    def _collect_written(self) -> None:
        if self._writing is None or not self._writing.done():
            return
        writing, self._writing = self._writing, None
        try:
            self._last_checkpoint = writing.result()
        except (Unavailable, CorruptArtifact) as error:
            self._checkpointed_offsets = []
            _log.error("the checkpoint was not written, trying again at the next interval: %s", error)

    def _await_writer(self) -> None:
        if self._writing is not None:
            self._writing.exception()
            self._collect_written()

    def _note_checkpoint(self, url: str, checkpoint: Checkpoint) -> None:
        self._last_checkpoint, self._checkpointed_offsets = url, checkpoint.cut.position.offsets
        self._refresh()

    def _finish(self) -> None:
        """Publish what was learned and leave a checkpoint, so that the next start repeats nothing. Never hangs on an absent broker."""
        session = self._session
        self._await_writer()
        try:
            session.check_ownership()
            session.publisher.flush(session.learner, _FINAL_FLUSH_MS)
            self._publish()
            session.publisher.flush(session.learner, _FINAL_FLUSH_MS)
            if not session.publisher.refusal:
                self._write(session.cut())
        except (Unavailable, CorruptArtifact) as error:
            _log.warning("stopped without a last checkpoint; the next start repeats what came after the one before: %s", error)

    def _refresh(self, prequential: Mapping[str, TaskQuality] | None = None) -> None:
        self._status = self._snapshot(self._status.prequential if prequential is None else prequential)

    def _snapshot(self, prequential: Mapping[str, TaskQuality]) -> Status:
        session = self._session
        position = session.merge.position
        return Status(
            lineage_id=session.lineage_id,
            base_id=session.publisher.base_id,
            epoch=session.epoch,
            seq=session.publisher.seq,
            source_offsets=tuple(position.offsets),
            watermark_ms=position.watermark_ms,
            counters=session.counters,
            paused=self._paused,
            publishing_refused=session.publisher.refusal,
            table_rows={name: len(table) for name, table in session.learner.tables.items()},
            last_checkpoint=self._last_checkpoint,
            prequential=prequential,
        )
