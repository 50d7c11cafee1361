"""One round: a broker, joiner, trainer and updater of the checkout in PYTHONPATH, some traffic, and what became of each event when.

Run by `python -m loadtests.bench_freshness`. Needs nothing of the package but this file, so it runs over the code of commits before it.
Prints one line of JSON: seconds by part and event, and processor seconds by process.
"""

from __future__ import annotations

import argparse
import bisect
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tunemesh.events.v1 import exposure_pb2, feedback_pb2
from tunemesh.samples.v1 import sample_pb2

from services.common.events import envelope
from services.common.events.topics import EXPOSURES, FEEDBACK, RANKER_DELTAS, SAMPLES
from services.common.platform.clock import wall_ms
from services.common.platform.ids import uuid7
from services.common.platform.kafka import assigned_consumer
from services.common.platform.kafka_producer import durable_producer
from services.common.platform.settings import load_settings
from services.common.ranker import exposure_block
from services.common.ranker.delta_chunks import parse_chunk
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.tables.reader import ModelReader, TableNotReady
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.settings import MeshSettings
from services.trainer.merge import GroupRecord, TickMerge, TickRecord, start_position

PROCESSES = ("kafka", "joiner", "trainer", "updater")
_PARTITIONS = 2
_ITEMS = 20
_USERS = 200
_ANSWER_AFTER_S = 0.05
_SETTLE_LIMIT_S = 60.0
_BATCH_GROUPS = 16


@dataclass
class Seen:
    """What the watchers saw; times are Unix seconds."""

    sample_at: dict[str, tuple[float, int]] = field(default_factory=dict)  # feedback id -> when its record was written, and where
    ticks: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: {number: [] for number in range(_PARTITIONS)})
    deltas: list[tuple[float, int]] = field(default_factory=list)  # written at, watermark
    delta_names: set[tuple[int, int]] = field(default_factory=set)  # epoch, seq
    applied: list[tuple[float, int]] = field(default_factory=list)  # seen in the tables at, watermark
    records: list[tuple[int, Any]] = field(default_factory=list)  # (partition, merge record), in the order of each partition

    def take_sample(self, record: Any) -> None:
        """Take a record of samples.v1."""
        message = sample_pb2.SampleRecord.FromString(record.value)
        if message.WhichOneof("record") == "tick":
            self.ticks[record.partition].append((record.timestamp / 1e3, message.tick.watermark_ms))
            self.records.append((record.partition, TickRecord(record.offset, message.tick.tick, message.tick.watermark_ms)))
            return
        self.records.append((record.partition, GroupRecord(record.offset, None)))
        for sample in message.group.samples:
            if sample.feedback_id:
                self.sample_at.setdefault(sample.feedback_id, (record.timestamp / 1e3, record.partition))

    def take_delta(self, record: Any) -> None:
        """Take a record of ranker.deltas.v1."""
        header = parse_chunk(record.value).header
        self.deltas.append((record.timestamp / 1e3, header.watermark_ms))
        self.delta_names.add((header.epoch, header.seq))


class Traffic:
    """Exposures with real feature blocks, each with one answer."""

    def __init__(self, bootstrap: str, spec: FeatureSpec, seed: int) -> None:
        """Connect."""
        self._spec, self._random = spec, random.Random(seed)
        self._producer = durable_producer(bootstrap, client_id="bench", linger_ms=5)
        self.accepted_ms: dict[str, int] = {}

    def run(self, per_second: float, seconds: float) -> None:
        """Send events at random times, `per_second` on average."""
        began, due = time.monotonic(), 0.0
        later: list[tuple[float, exposure_pb2.Exposure]] = []
        while (elapsed := time.monotonic() - began) < seconds or later:
            while due <= elapsed and due < seconds:
                later.append((due + _ANSWER_AFTER_S, self._expose()))
                due += self._random.expovariate(per_second)
            while later and later[0][0] <= elapsed:
                self._answer(later.pop(0)[1])
            time.sleep(0.002)
        self._producer.flush()

    def _expose(self) -> exposure_pb2.Exposure:
        spec = self._spec
        features = Features(
            user_key=1,
            history_keys_L=np.arange(3, dtype=np.int64),
            history_values_L=np.zeros(3, np.float16),
            user_U=np.zeros(len(spec.user_columns), np.float16),
            items_NF=np.zeros((_ITEMS, len(spec.item_columns)), np.float16),
        )
        exposure = exposure_pb2.Exposure(
            request_id=uuid7(),
            user_id=f"u{self._random.randrange(_USERS)}",
            exposed_at_ms=wall_ms(),
            item_ids=[str(item) for item in self._random.sample(range(1_000), _ITEMS)],
            features_block=exposure_block.encode(features, spec.schema_hash),
            schema_hash=spec.schema_hash,
            model_version="1.0",
            variant="default",
        )
        self._send(EXPOSURES.name, exposure.user_id, exposure.SerializeToString())
        return exposure

    def _answer(self, exposure: exposure_pb2.Exposure) -> None:
        feedback = feedback_pb2.Feedback(
            feedback_id=uuid7(),
            request_id=exposure.request_id,
            user_id=exposure.user_id,
            item_id=exposure.item_ids[0],
            kind="rating",
            value=float(self._random.randrange(1, 6)),
            accepted_at_ms=wall_ms(),
        )
        self._send(FEEDBACK.name, feedback.user_id, feedback.SerializeToString())
        self.accepted_ms[feedback.feedback_id] = feedback.accepted_at_ms

    def _send(self, topic: str, key: str, value: bytes) -> None:
        self._producer.send(topic, value, key.encode(), headers=envelope.headers_for("bench", "/bench"))

    def close(self) -> None:
        """Disconnect."""
        self._producer.close()


@contextmanager
def watching(*looks: Callable[[], None]) -> Iterator[None]:
    """Run each look again and again in a thread of its own."""
    stop = threading.Event()

    def repeat(look: Callable[[], None]) -> None:
        while not stop.is_set():
            look()

    threads = [threading.Thread(target=repeat, args=(look,), daemon=True) for look in looks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def looks_at(bootstrap: str, reader: ModelReader, seen: Seen) -> list[Callable[[], None]]:
    """Return what looks at samples, deltas and tables."""

    def follow(topic: str, take: Callable[[Any], None]) -> Callable[[], None]:
        consumer = assigned_consumer(bootstrap, topic, start="beginning", client_id="bench", fetch_max_wait_ms=500)

        def look() -> None:
            for batch in consumer.poll(timeout_ms=200).values():
                for record in batch:
                    take(record)

        return look

    def look_at_tables() -> None:
        time.sleep(0.004)
        try:
            watermark_ms = reader.status().watermark_ms
        except TableNotReady:
            return
        if not seen.applied or watermark_ms > seen.applied[-1][1]:
            seen.applied.append((wall_ms() / 1e3, watermark_ms))

    return [follow(SAMPLES.name, seen.take_sample), follow(RANKER_DELTAS.name, seen.take_delta), look_at_tables]


def opened(tables_dir: str, schema_hash: str) -> ModelReader:
    """Return a reader of the tables, once there are some."""
    deadline = time.monotonic() + _SETTLE_LIMIT_S
    while True:
        try:
            return ModelReader(tables_dir, schema_hash)
        except TableNotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def processor_seconds(mesh: Mesh) -> dict[str, float]:
    """Return the processor time of each process so far, children included."""
    found = {}
    for name, pid in mesh.pids().items():
        if name in PROCESSES:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            found[name] = sum(sum(each.cpu_times()[:2]) for each in family)
    return found


def first_at(moments: list[tuple[float, int]], watermark_ms: int) -> float:
    """Return when a watermark was first reached; the watermarks only grow."""
    at = bisect.bisect_left([reached for _, reached in moments], watermark_ms)
    return moments[at][0] if at < len(moments) else float("nan")


def parts_of(accepted_ms: dict[str, int], seen: Seen) -> list[dict[str, float]]:
    """Return per event the seconds that each part took, and from acceptance to learned."""
    found = []
    for feedback_id, at_ms in accepted_ms.items():
        if feedback_id not in seen.sample_at:
            continue
        sampled, _ = seen.sample_at[feedback_id]
        # The watermark of all replicas is the least of the partitions.
        ticked = max(first_at(each, at_ms) for each in seen.ticks.values())
        published, applied = first_at(seen.deltas, at_ms), first_at(seen.applied, at_ms)
        accepted = at_ms / 1e3
        found.append(
            {
                "joined": sampled - accepted,
                "covered by a tick": ticked - sampled,
                "published": published - ticked,
                "applied": applied - published,
                "learned": applied - accepted,
            }
        )
    return found


def settle(traffic: Traffic, seen: Seen) -> None:
    """Wait until all feedback is learned."""
    last_ms = max(traffic.accepted_ms.values())
    deadline = time.monotonic() + _SETTLE_LIMIT_S
    while not (seen.applied and seen.applied[-1][1] >= last_ms) and time.monotonic() < deadline:
        time.sleep(0.05)


def micro_batches(seen: Seen) -> int:
    """Return how many micro-batches the trainer makes of the samples."""
    merge: TickMerge[None] = TickMerge(start_position([0] * _PARTITIONS), batch_groups=_BATCH_GROUPS)
    for partition, record in seen.records:
        merge.push(partition, record)
    return sum(1 for _ in iter(merge.next_batch, None))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run the round."""
    env = {
        "TUNEMESH_JOINER_WINDOW_MS": "2000",
        "TUNEMESH_JOINER_LATE_HORIZON_MS": "30000",
        "TUNEMESH_TELEMETRY_DIR": str(options.folder / "telemetry"),
        "TUNEMESH_TELEMETRY_SAMPLE_RATIO": "0.01",
    }
    settings = load_settings(MeshSettings).model_copy(update={"broker": "tansu", "start_timeout_ms": 300_000})
    spec = FeatureSpec.load(Path(options.spec))
    seen = Seen()
    with Mesh(
        env=env, run_dir=options.folder, services=("kafka", "trainer", "updater", "joiner"), free_ports=True, settings=settings
    ) as mesh:
        mesh.up()
        environment = mesh.environment("updater")
        bootstrap = environment["KAFKA_BOOTSTRAP_SERVERS"]
        reader = opened(environment["TUNEMESH_TABLES_DIR"], spec.schema_hash)
        traffic = Traffic(bootstrap, spec, options.seed)
        try:
            with watching(*looks_at(bootstrap, reader, seen)):
                for _ in range(2):  # does not count: what is made at the first use
                    traffic.run(min(options.rate, 20.0), 5.0)
                    settle(traffic, seen)
                before, num_before = processor_seconds(mesh), len(traffic.accepted_ms)
                deltas_before, began = len(seen.delta_names), time.monotonic()
                traffic.run(options.rate, options.seconds)
                settle(traffic, seen)
                after, elapsed = processor_seconds(mesh), time.monotonic() - began
                num_deltas = len(seen.delta_names) - deltas_before
        finally:
            traffic.close()
    counted = dict(list(traffic.accepted_ms.items())[num_before:])
    return {
        "events": len(counted),
        "parts": parts_of(counted, seen),
        "cpu_s": {name: after[name] - before[name] for name in before},
        "elapsed_s": elapsed,
        "deltas": num_deltas,
        "ticks": sum(map(len, seen.ticks.values())),
        "micro_batches": micro_batches(seen),
        "groups": sum(isinstance(record, GroupRecord) for _, record in seen.records),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="One round; see loadtests.bench_freshness.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    print(json.dumps(measured(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
