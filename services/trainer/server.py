"""The trainer's wiring: the control API in the main thread, the ranker worker in a thread of its own.

The worker's thread makes everything that it owns (learner, Kafka clients, epoch), so that the server answers health while torch loads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from tunemesh.events.v1 import delta_pb2
from tunemesh.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

from services.common.language.lora_store import AdapterStore
from services.common.platform.artifacts import Arrays
from services.common.platform.clock import wall_ms
from services.common.platform.errors import CorruptArtifact, ServiceError
from services.common.platform.grpc_server import GrpcServer, Servicer, serve
from services.common.platform.ids import uuid7
from services.common.platform.kafka_producer import RenewedProducer
from services.common.platform.settings import redacted, variable_of
from services.common.platform.telemetry import Telemetry, configure
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.base_schedule import BasePace
from services.trainer.bases import BaseStore, read_initial_base
from services.trainer.checkpoints import CheckpointStore, Retention
from services.trainer.epoch import Epoch, EpochConfig
from services.trainer.epoch_start import open_epoch
from services.trainer.kafka_calls import make_producer
from services.trainer.kafka_logs import KafkaBaseLog, KafkaControlLog, KafkaDeltaLog
from services.trainer.kafka_replicas import KafkaReplicaReports
from services.trainer.kafka_samples import KafkaDeadLetters, KafkaSamples
from services.trainer.neighbours import Fenced, HistoryLost, Learner, Logs, Stores
from services.trainer.owner import ControlOwner
from services.trainer.publish_gate import PublishGateLimits
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.warm_up import warm_up_learner
from services.trainer.worker import RankerWorker, WorkerConfig

_log = logging.getLogger(__name__)

_SHARD = 0
_DTYPES: Mapping[str, delta_pb2.RowDtype] = {
    "fp32": delta_pb2.ROW_DTYPE_FP32,
    "bf16": delta_pb2.ROW_DTYPE_BF16,
    "int8": delta_pb2.ROW_DTYPE_INT8_ROWWISE,
}


OnReady = Callable[[RankerWorker, ControlOwner], None]


class WorkerThread:
    """Runs the worker from its wiring to its end; `done` carries its outcome."""

    def __init__(
        self, settings: TrainerSettings, spec: FeatureSpec, telemetry: Telemetry, on_ready: Callable[[RankerWorker, ControlOwner], None]
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            settings: of the process.
            spec: of the model.
            telemetry: of the process.
            on_ready: called in the thread when the epoch has begun.
        """
        self.done: Future[None] = Future()
        # Running: the main thread, when it is cancelled, cannot cancel it.
        self.done.set_running_or_notify_cancel()
        self._settings = settings
        self._spec = spec
        self._telemetry = telemetry
        self._on_ready = on_ready
        self._worker: RankerWorker | None = None
        self._stopping = threading.Event()
        # A daemon: a broker that does not answer must not keep the process alive after its drain.
        self._thread = threading.Thread(target=self._main, name="ranker-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ask the worker to end, and wait for it."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.warning("the worker did not end within %.0f s; the next start repeats what came after the last checkpoint", timeout_s)

    def _main(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    def _work(self) -> None:
        settings, spec = self._settings, self._spec
        warm_up_learner(spec, make_learner)
        producer = make_producer(settings.kafka_bootstrap_servers, settings.kafka_compression)
        samples = KafkaSamples(settings.kafka_bootstrap_servers, settings.samples_topic, settings.user_partitions)
        actor = f"trainer/{os.uname().nodename}/{os.getpid()}"
        control_log = KafkaControlLog(settings.kafka_bootstrap_servers, settings.control_topic, producer)
        owner = ControlOwner(control_log, actor=actor, now_ms=wall_ms)
        reports = KafkaReplicaReports(settings.kafka_bootstrap_servers, settings.replicas_topic)
        try:
            logs, stores = make_logs(settings, samples, owner, producer), make_stores(settings, spec)

            def begin_epoch() -> Epoch:
                return open_epoch(
                    lambda: make_learner(spec),
                    logs,
                    stores,
                    epoch_config(settings, spec, actor),
                    now_ms=wall_ms,
                    new_lineage_id=uuid7(),
                    initial_arrays=lambda: initial_arrays(settings, spec),
                )

            dead_letters = KafkaDeadLetters(settings.dead_letters_topic, producer)
            worker = RankerWorker(begin_epoch, spec, samples, dead_letters, reports, worker_config(settings), self._telemetry)
            self._worker = worker
            if self._stopping.is_set():
                return
            self._on_ready(worker, owner)
            reports.start()
            worker.run()
        finally:
            reports.stop()
            samples.close()
            control_log.close()
            producer.close()


def make_learner(spec: FeatureSpec) -> Learner:
    """Return an untrained learner. Imports torch, which takes seconds."""
    import torch

    from services.trainer import learner as learning

    # One thread: the order of floating-point sums, and so every bit of the weights, must not depend on the machine.
    torch.set_num_threads(1)
    return learning.Learner(spec, learning.LearnerConfig.of(spec))


def make_logs(settings: TrainerSettings, samples: KafkaSamples, owner: ControlOwner, producer: RenewedProducer) -> Logs:
    """Return the broker's side."""
    bootstrap = settings.kafka_bootstrap_servers
    return Logs(
        samples=samples,
        deltas=KafkaDeltaLog(bootstrap, settings.deltas_topic, _SHARD, producer),
        bases=KafkaBaseLog(bootstrap, settings.bases_topic, producer),
        owner=owner,
    )


def make_stores(settings: TrainerSettings, spec: FeatureSpec) -> Stores:
    """Return the artifacts' side."""
    url, model, schema_hash = settings.artifacts_url, spec.model, spec.schema_hash
    retention = Retention(
        keep=settings.keep_checkpoints, history_interval_ms=settings.history_interval_ms, history_keep=settings.history_keep
    )
    return Stores(
        checkpoints=CheckpointStore(url, model=model, schema_hash=schema_hash, retention=retention),
        bases=BaseStore(url, model=model, schema_hash=schema_hash, row_dtype=_DTYPES[settings.delta_dtype], keep=settings.keep_bases),
    )


def epoch_config(settings: TrainerSettings, spec: FeatureSpec, actor: str) -> EpochConfig:
    """Return what the settings say about an epoch."""
    return EpochConfig(
        model=spec.model,
        schema_hash=spec.schema_hash,
        batch_groups=settings.batch_groups,
        dedup_window_samples=settings.dedup_window_samples,
        dedup_max_samples=settings.dedup_max_samples,
        dtype=_DTYPES[settings.delta_dtype],
        limits=PublishGateLimits(max_row_norm=settings.max_row_norm, max_dense_norm=settings.max_dense_norm),
        quality=settings.quality_limits,
        tasks=spec.task_names,
        unanswered=tuple(task.unanswered is not None for task in spec.tasks),
        on_lineage_change=settings.on_lineage_change,
        on_lineage_change_variable=variable_of(settings, "on_lineage_change"),
        actor=actor,
    )


def worker_config(settings: TrainerSettings) -> WorkerConfig:
    """Return the worker's pace."""
    return WorkerConfig(
        samples_topic=settings.samples_topic,
        publish_interval_ms=settings.publish_interval_ms,
        publish_gap_ms=settings.publish_gap_ms,
        checkpoint_interval_ms=settings.checkpoint_interval_ms,
        base_pace=BasePace(interval_s=settings.base_interval_ms / 1e3),
    )


def initial_arrays(settings: TrainerSettings, spec: FeatureSpec) -> Arrays | None:
    """Return what a learner without a checkpoint begins with, None for untrained weights.

    Raises:
        ConfigurationError: the base named by the settings is missing, damaged or foreign.
    """
    if not settings.initial_base:
        return None
    return read_initial_base(settings.initial_base, schema_hash=spec.schema_hash, variable=variable_of(settings, "initial_base"))


def servicer_of(implementation: TrainerServicer) -> Servicer:
    """Return what the gRPC server needs to know of the service."""
    return Servicer(
        descriptor=trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
        implementation=implementation,
        register=trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
    )


async def run(settings: TrainerSettings) -> None:
    """Serve until SIGTERM, or until the worker cannot go on.

    Raises:
        ConfigurationError: a file, a URL or the port is wrong, or broker and checkpoints do not belong together.
        SystemExit: the worker cannot go on, for a reason that the log says in one line.
    """
    spec = FeatureSpec.load(settings.feature_spec_path)
    telemetry = configure("trainer", settings)
    # Each connection is several lines at INFO, and reading a log back opens one.
    logging.getLogger("kafka").setLevel(logging.WARNING)
    _log.info("settings: %s", redacted(settings))
    adapters = AdapterStore(settings.artifacts_url)
    servicer = TrainerServicer(model=spec.model, schema_hash=spec.schema_hash, adapters=adapters)
    threads: list[WorkerThread] = []

    async def work(server: GrpcServer) -> None:
        def ready(worker: RankerWorker, owner: ControlOwner) -> None:
            servicer.attach(worker, owner)
            server.set_serving_threadsafe(True)

        thread = WorkerThread(settings, spec, telemetry, ready)
        threads.append(thread)
        thread.start()
        await asyncio.wrap_future(thread.done)

    async def stop() -> None:
        for thread in threads:
            await asyncio.to_thread(thread.stop, settings.drain_grace_ms / 1e3 + 10)

    try:
        await serve([servicer_of(servicer)], settings, telemetry, on_drain=stop, main=work, serving=False)
    except (CorruptArtifact, Fenced, HistoryLost, ServiceError) as error:
        _log.error("the trainer stops: %s", error)
        raise SystemExit(1) from None
