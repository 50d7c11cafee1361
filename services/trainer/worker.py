"""The ranker worker: one thread that reads samples, learns, publishes and checkpoints, and runs the control API's commands in between.

The thread owns every piece of the epoch; others hand it commands (`submit`) and read `status`, an immutable snapshot. What it
learns in which order is decided by `merge`, never by time.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from services.common.platform.errors import Conflict, CorruptArtifact, Unavailable
from services.common.platform.telemetry import Telemetry
from services.common.platform.traceparent import current_traceparent
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.base_publisher import BasePublisher, ReplicaReports
from services.trainer.base_schedule import BasePace, BaseSchedule
from services.trainer.checkpoint_writer import CheckpointWriter
from services.trainer.epoch import Epoch
from services.trainer.merge import Batch
from services.trainer.outage import Outage
from services.trainer.prequential import TaskQuality
from services.trainer.publish_pace import PublishPace
from services.trainer.restore import RestoreRequest, SampleSource, decide
from services.trainer.sample_intake import DeadLetters, SampleIntake
from services.trainer.samples import Learnable
from services.trainer.status import Restoration, Status, Written

_log = logging.getLogger(__name__)

_POLL_MS = 50
# While no delta is on its way, and nothing but a command or a record, which ends the wait, can come up: a wait costs a millisecond.
_QUIET_POLL_MS = 200
_FINAL_FLUSH_MS = 5_000
# A look at a broker that is down blocks the worker: not at every interval.
_LOOK_AGAIN_S = 3.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The worker's pace, as `TrainerSettings` has it."""

    samples_topic: str
    publish_interval_ms: int
    publish_gap_ms: int
    checkpoint_interval_ms: int
    base_pace: BasePace


class RankerWorker:
    """Runs one epoch after the other until told to stop, or until it cannot go on."""

    def __init__(
        self,
        begin_epoch: Callable[[], Epoch],
        spec: FeatureSpec,
        source: SampleSource,
        dead_letters: DeadLetters,
        reports: ReplicaReports,
        config: WorkerConfig,
        telemetry: Telemetry,
    ) -> None:
        """Begin an epoch, in the calling thread, which takes seconds; nothing is learned before `run`.

        Args:
            begin_epoch: opens an epoch from the newest checkpoint; called now, and again when a checkpoint is restored. The epoch
                belongs to the worker's thread from `run` on.
            spec: what samples must fit.
            source: positioned by the epoch.
            dead_letters: where unusable samples go.
            reports: what replicas say; one that asks for a base gets one.
            config: the pace.
            telemetry: of this process.
        Raises:
            ConfigurationError, CorruptArtifact, Unavailable: the epoch cannot begin.
        """
        self._begin_epoch = begin_epoch
        self._epoch = begin_epoch()
        self._spec = spec
        self._source = source
        self._intake = SampleIntake(source, spec, dead_letters, config.samples_topic, telemetry)
        self._checkpoints = CheckpointWriter(dead_letters.flush)
        schedule = BaseSchedule(config.base_pace, model=spec.model, schema_hash=spec.schema_hash)
        self._bases = BasePublisher(schedule, reports, self._checkpoints, time.monotonic)
        self._bases.begin(self._epoch)
        self._config = config
        self._telemetry = telemetry
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._paused = self._paused_by_gate = False
        self._failure: BaseException | None = None
        self._pace = PublishPace(config.publish_interval_ms / 1e3, config.publish_gap_ms / 1e3)
        self._next_checkpoint = self._next_look = 0.0
        self._is_drained = False  # nothing that could be learned waits
        self._watching = Outage("control.v1 cannot be read")
        self._step_traces: list[str] = []
        self._unpublished_ms: list[int] = []
        meter = telemetry.meter
        self._samples_counter = meter.create_counter("trainer.samples", description="Samples learned.")
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
        """Consume samples again. A publish gate that refused the quality of scores takes the present one for its reference."""
        self._epoch.accept_quality()
        self._paused = self._paused_by_gate = False
        self._refresh()

    def write_checkpoint(self) -> Written:
        """Write a checkpoint and return when it is durable.

        Raises:
            Conflict: the publish gate refuses what was learned; a restart goes back to the last checkpoint.
            Unavailable: the store cannot be written.
        """
        self._wait_for_writer()
        checkpoint = self._epoch.cut()
        if reason := self._epoch.publisher.refusal or self._epoch.refusal_of(checkpoint):
            raise Conflict(f"the publish gate refuses what was learned, so no checkpoint of it is written: {reason}")
        state_hash = self._epoch.learner.state_hash()
        url = self._checkpoints.write(self._epoch, checkpoint)
        offsets = checkpoint.cut.position.offsets
        self._checkpoints.note(url, offsets)
        self._refresh()
        return Written(url=url, state_hash=state_hash, source_offsets=tuple(offsets))

    def publish_base(self) -> tuple[str, str]:
        """Publish a base and return its id and URL."""
        # A broker that is down is noticed here, sooner than by a delta that waits for it.
        self._epoch.check_ownership()
        self._wait_for_writer()
        # Its checkpoint continues behind what was set aside.
        self._checkpoints.flush_dead_letters()
        pointer = self._epoch.publish_base()
        self._bases.note(self._epoch)
        self._refresh()
        return pointer.base_id, pointer.uri

    def restore(self, request: RestoreRequest) -> Restoration:
        """Go back to an older checkpoint, in a new epoch; return when replicas have what is in it.

        A pause that the publish gate had made ends, since its cause is gone; an operator's stays.

        Raises:
            NotFound, Conflict: from `restore.decide`; nothing was changed.
            Unavailable: the broker or the store does not answer. When the restore was decided by then, the message says so: the worker
                ends, and the next start completes it.
        """
        self._epoch.check_ownership()
        self._wait_for_writer()
        try:
            decision = decide(self._epoch, self._source, self._spec, request)
            url = self._checkpoints.write(self._epoch, decision.checkpoint)
        except BaseException:
            self._epoch.rewind()
            raise
        try:
            epoch = self._begin_epoch()
        except BaseException as error:
            self._failure = error
            name = decision.target.checkpoint.cut.name
            raise Unavailable(
                f"the restore of {name} is decided, but its epoch could not begin; the next start of the trainer completes it: {error}"
            ) from error
        self._take_over(epoch, url)
        return Restoration(
            url=decision.target.url,
            version=decision.target.checkpoint.version,
            created_at_ms=decision.target.created_at_ms,
            epoch=epoch.number,
            source_offsets=tuple(epoch.merge.position.offsets),
            skipped=decision.skipped,
        )

    def _take_over(self, epoch: Epoch, checkpoint_url: str) -> None:
        """Go on with the epoch of a restored checkpoint. A delta of the old one that is still on its way is refused by its epoch."""
        self._epoch = epoch
        if self._paused_by_gate:
            self._paused = self._paused_by_gate = False
        self._step_traces.clear()
        self._unpublished_ms.clear()
        self._checkpoints.note(checkpoint_url, epoch.merge.position.offsets)
        self._bases.begin(epoch)
        self._refresh({})

    def run(self) -> None:
        """Work until `stop`; then flush, write a last checkpoint and return.

        Raises:
            Fenced: a newer trainer took over. Nothing more is published or written.
            HistoryLost: the broker no longer has what it had.
            Exception: the learner failed.
        """
        now = time.monotonic()
        self._pace.begin(now)
        self._next_look = now + self._config.publish_interval_ms / 1e3
        self._next_checkpoint = now + self._config.checkpoint_interval_ms / 1e3
        try:
            while not self._stopping.is_set():
                self._between_batches()
                if self._paused:
                    time.sleep(_POLL_MS / 1e3)
                    continue
                poll_ms = _QUIET_POLL_MS if self._epoch.publisher.is_idle else _POLL_MS
                self._intake.take(self._epoch, min(poll_ms, int(self._wait_s() * 1e3)))
                self._is_drained = True
                while not self._stopping.is_set() and not self._paused and (batch := self._epoch.merge.next_batch()) is not None:
                    self._is_drained = False
                    self._learn(batch)
                    self._between_batches()
            self._finish()
        finally:
            self._stopping.set()
            self._checkpoints.close()

    def _learn(self, batch: Batch[Learnable]) -> None:
        started = time.perf_counter()
        with self._telemetry.span("trainer.step", links=[item.traceparent for item in batch.groups]):
            num_samples = self._epoch.learn(batch)
            self._step_traces.append(current_traceparent())
        self._samples_counter.add(num_samples)
        self._step_ms.record((time.perf_counter() - started) * 1e3)

    def _between_batches(self) -> None:
        """Do what is due: commands, publishing, a checkpoint."""
        while not self._commands.empty():
            self._commands.get()()
            if self._failure is not None:
                raise self._failure
        self._poll_publisher()
        self._bases.advance(self._epoch)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._config.publish_interval_ms / 1e3
            self._watch_control()
            self._refresh(self._epoch.learner.prequential())
        if self._pace.wait_s(now, has_news=self._is_drained and self._has_news()) == 0.0:
            self._publish()
            self._pace.published(now, time.monotonic() - now)
        self._bases.collect(self._epoch, self._checkpoints.collect())
        if now >= self._next_checkpoint and not self._checkpoints.is_writing and not self._bases.is_waiting:
            self._next_checkpoint = now + self._config.checkpoint_interval_ms / 1e3
            self._checkpoints.start(self._epoch)
        self._refresh()

    def _has_news(self) -> bool:
        """Whether a delta before its time would tell replicas something; not while one is on its way, or none is let pass."""
        publisher = self._epoch.publisher
        return publisher.is_idle and not publisher.refusal and not self._paused and self._epoch.has_news

    def _wait_s(self) -> float:
        """Return how long nothing is to be done but to wait for samples."""
        return self._pace.wait_s(time.monotonic(), has_news=self._has_news())

    def _publish(self) -> None:
        """Start the next delta; when the last one is still on its way, its changes wait for the one after."""
        epoch = self._epoch
        if not epoch.publisher.is_idle:
            return
        with self._telemetry.span("trainer.publish_delta", links=self._step_traces):
            # A heartbeat belongs to no trace.
            traceparent = current_traceparent() if self._step_traces else ""
            epoch.publisher.publish(epoch.learner, epoch.merge.position, now_ms=epoch.now_ms(), traceparent=traceparent)
        if not self._stopping.is_set():
            self._bases.cut_if_due(epoch)
        self._step_traces.clear()
        if epoch.publisher.refusal and not self._paused:
            _log.error("learning is paused: repair the cause, then resume (TrainerService.ResumeLearning), or restart from a checkpoint")
            self._paused = self._paused_by_gate = True
        self._unpublished_ms += epoch.accepted_at_ms
        epoch.accepted_at_ms.clear()

    def _poll_publisher(self) -> None:
        publisher = self._epoch.publisher
        if not publisher.is_idle and publisher.poll(self._epoch.learner) and not publisher.refusal:
            now_ms = self._epoch.now_ms()
            for accepted_at_ms in self._unpublished_ms:
                # Below zero when the clock of whoever accepted it is ahead.
                self._lag_ms.record(max(now_ms - accepted_at_ms, 0))
            self._unpublished_ms.clear()

    def _watch_control(self) -> None:
        try:
            self._epoch.check_ownership()
        except Unavailable as error:
            self._watching.note(error)
            self._next_look = time.monotonic() + _LOOK_AGAIN_S
        else:
            self._watching.end()

    def _finish(self) -> None:
        """Publish what was learned and leave a checkpoint, so that the next start repeats nothing. Never hangs on an absent broker."""
        epoch = self._epoch
        self._wait_for_writer()
        try:
            epoch.check_ownership()
            epoch.publisher.flush(epoch.learner, _FINAL_FLUSH_MS)
            self._publish()
            epoch.publisher.flush(epoch.learner, _FINAL_FLUSH_MS)
            if not epoch.publisher.refusal:
                self._checkpoints.write(epoch, epoch.cut())
        except (Unavailable, CorruptArtifact) as error:
            _log.warning("stopped without a last checkpoint; the next start repeats what came after the one before: %s", error)

    def _wait_for_writer(self) -> None:
        self._bases.collect(self._epoch, self._checkpoints.wait())

    def _refresh(self, prequential: Mapping[str, TaskQuality] | None = None) -> None:
        self._status = self._snapshot(self._status.prequential if prequential is None else prequential)

    def _snapshot(self, prequential: Mapping[str, TaskQuality]) -> Status:
        return Status.of(self._epoch, paused=self._paused, last_checkpoint=self._checkpoints.last_url, prequential=prequential)
