"""What the demo shows while it runs: asks the trainer, follows the frozen evaluator's file, and computes the metrics so far."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import grpc
import numpy as np
from tunemesh.trainer.v1 import trainer_service_pb2 as trainer_pb2
from tunemesh.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

from loadtests.demo.client import MeshClient
from loadtests.demo.probe import FreshnessProbe
from loadtests.demo.progress import Progress, Snapshot
from loadtests.demo.replay import ReplayLog
from loadtests.demo.report import FrozenScore, side_by_side
from loadtests.metrics import auc
from services.common.platform.grpc_client import open_channel

_EVERY_S = 2.0
_WINDOW = 4_000  # latest events over which the live metrics are shown


class FrozenScores:
    """Follows the file that the frozen evaluator appends to: one JSON object a line (request_id, like, ndcg)."""

    def __init__(self, path: Path) -> None:
        """`path` may not exist yet."""
        self._path = path
        self.bytes_read = 0
        self.by_request: dict[str, FrozenScore] = {}

    async def refresh(self) -> None:
        """Read the complete lines that have come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self.bytes_read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self.bytes_read += len(complete)
        for line in complete.splitlines():
            row = json.loads(line)
            self.by_request[row["request_id"]] = FrozenScore(row["like"], row["ndcg"])


class TrainerWatch:
    """Asks the trainer for its status; the last answer stays when it is down."""

    def __init__(self, address: str) -> None:
        """`address` is host:port."""
        self._channel = open_channel(address)
        self._stub = trainer_grpc.TrainerServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self.last = trainer_pb2.GetStatusResponse()
        self.is_down = False

    async def refresh(self) -> trainer_pb2.GetStatusResponse:
        """Return the newest status."""
        try:
            self.last = await self._stub.GetStatus(trainer_pb2.GetStatusRequest(), timeout=3.0)
            self.is_down = False
        except grpc.aio.AioRpcError:
            self.is_down = True  # it was killed or is busy: shown as such, asked again
        return self.last

    async def wait_watermark(self, watermark_ms: int, *, limit_s: float) -> bool:
        """Return True once everything accepted up to `watermark_ms` is learned, False when the time is up."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if (await self.refresh()).watermark_ms >= watermark_ms:
                return True
            await asyncio.sleep(0.5)
        return False

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class Watch:
    """Shows the state of a replay every two seconds until it is cancelled."""

    def __init__(
        self,
        progress: Progress,
        trainer: TrainerWatch,
        frozen: FrozenScores,
        *,
        client: MeshClient,
        probe: FreshnessProbe,
        log: ReplayLog,
        planned_events: int,
    ) -> None:
        """Everything is only read."""
        self._progress, self._trainer, self._frozen = progress, trainer, frozen
        self._client, self._probe, self._log, self._planned = client, probe, log, planned_events

    async def run(self) -> None:
        """Refresh for ever."""
        started, before = time.monotonic(), 0
        last = started
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._trainer.refresh()
            await self._frozen.refresh()
            now, events = time.monotonic(), len(self._log.outcomes)
            self._progress.show(self._snapshot((events - before) / (now - last)))
            before, last = events, now

    def _snapshot(self, rate: float) -> Snapshot:
        status, log = self._trainer.last, self._log
        snapshot = Snapshot()
        show = snapshot.values
        show["events"] = f"{len(log.outcomes):,} of {self._planned:,}, {rate:.0f}/s"
        counts = self._client.counts
        show["calls"] = f"{counts.succeeded:,} ok, {counts.retried} retried, {counts.failed} failed"
        latency = counts.recommend_latency_ms[-500:]
        if latency:
            p50, p99 = np.percentile(latency, [50, 99])
            show["recommend ms"] = f"p50 {p50:.0f} p99 {p99:.0f}"
        if log.degraded:
            show["degraded"] = ", ".join(f"{reason} {number}" for reason, number in log.degraded.items())
        age_s = max(0.0, time.time() - status.watermark_ms / 1e3) if status.watermark_ms else float("nan")
        show["trainer"] = f"{'down, ' if self._trainer.is_down else ''}{status.samples_trained:,} samples, watermark {age_s:.1f} s old"
        show["version"] = f"trainer {status.epoch}.{status.seq}, served {log.last_version or '-'}"
        learned = self._probe.log.seconds
        if learned:
            p50, p95 = np.percentile(learned, [50, 95])
            show["event→learned s"] = f"p50 {p50:.1f} p95 {p95:.1f} ({len(learned)} probes)"
        show |= self._quality()
        return snapshot

    def _quality(self) -> dict[str, str]:
        scored = side_by_side(self._log.outcomes[-_WINDOW:], self._frozen.by_request, set())
        if len(scored.users) < 100:
            return {}
        like = " / ".join(f"{auc(scored.liked, scores):.3f}" for scores in scored.like.values())
        ndcg = " / ".join(f"{values.mean():.3f}" for values in scored.ndcg.values())
        return {"latest: like AUC live/frozen/means": like, "NDCG@10 live/frozen/popularity": ndcg}
