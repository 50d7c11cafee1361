"""The demo's first part: MovieLens as live traffic, and what the ranker gains by learning from it.

Knows the running mesh and the data; starts nothing but the frozen copy that it compares with.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from loadtests.demo import base, report
from loadtests.demo.accounting import Accounting, account
from loadtests.demo.catalogue import write_catalogue
from loadtests.demo.client import MeshClient
from loadtests.demo.phases import Phases
from loadtests.demo.plan import sessions, speed_for
from loadtests.demo.probe import FreshnessProbe
from loadtests.demo.progress import Progress
from loadtests.demo.replay import LIKE_STARS, Replay, ReplayLog
from loadtests.demo.watch import FrozenScores, TrainerWatch, Watch
from loadtests.metrics import OnlineCounters
from loadtests.movielens import ACTIVE_USERS, CandidateDrawer
from services.common.platform.errors import ConfigurationError
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import build_features
from services.common.ranker.states import GlobalState, merge_item_bytes
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments
from services.mesh.runner.mesh import Mesh

SERVICES = ("router", "feedback_collector", "trainer", "updater", "recommender", "joiner", "features")
"""What this part needs of the mesh; what they depend on comes with them."""

SEED = 7
SPEC_PATH = REPOSITORY_ROOT / "model_repo" / "ranker" / "feature_spec.yaml"
_READY_LIMIT_S = 120.0
_DRAIN_LIMIT_S = 120.0
_QUIET_S = 4.0
_ACCOUNT_TRIES = 5


# The replay is sped up, so the join is too: users answer within seconds, not minutes. And a laptop that runs everything at once may be
# slow for a moment: better a late answer than one without the ranker.
MESH_ENV = {
    "TUNEMESH_RECOMMENDER_REDIS_TIMEOUT_MS": "1000",
    "TUNEMESH_RECOMMENDER_TRITON_TIMEOUT_MS": "3000",
    "TUNEMESH_RECOMMENDER_ITEM_CACHE_TTL_MS": "1000",
    "TUNEMESH_ROUTER_FLUSH_INTERVAL_MS": "100",
    "TUNEMESH_JOINER_WINDOW_MS": "2000",
    "TUNEMESH_JOINER_LATE_HORIZON_MS": "30000",
    "TUNEMESH_TRAINER_CHECKPOINT_INTERVAL_MS": "10000",
}


class RankerPart:
    """Loads, replays, drains and reports; needs the ranking half of the mesh running."""

    def __init__(self, options: argparse.Namespace, out: Path, data: base.Data, base_folder: Path, mesh: Mesh, phases: Phases) -> None:
        """Take what the command line says, the data, the trained base and the running mesh; results go to `out`."""
        self._options, self._out, self._data, self._base_folder = options, out, data, base_folder
        self._mesh, self._phases = mesh, phases
        self._kafka = mesh.environment("router")["KAFKA_BOOTSTRAP_SERVERS"]
        self._trainer = TrainerWatch(mesh.address("trainer"))
        self._frozen = FrozenScores(out / "frozen.jsonl")
        self._frozen_log = out / "frozen.log"

    async def run(self) -> dict[str, Any]:
        """Run all phases and return the ranker's part of the report.

        Raises:
            ConfigurationError: the mesh did not become ready.
            RuntimeError: not everything that was acknowledged was learned in time.
        """
        client = MeshClient(router=self._mesh.address("router"), collector=self._mesh.address("feedback_collector"), kafka=self._kafka)
        with self._phases("load", "the catalogue to catalog.v1, the base's online features to Redis"):
            await write_catalogue(self._kafka, self._data.films.values())
            await self._backfill()
            probe = self._probe()
            await self._wait_ready(client, probe)
            await client.start()
        replay = self._replay(client, probe)
        try:
            async with self._frozen_evaluator():
                with self._phases("replay", f"{self._planned:,} ratings as live traffic, {ACTIVE_USERS} users at once"):
                    await self._play(replay, client, probe)
                with self._phases("drain", "until everything acknowledged is learned and placed"):
                    await self._drain(replay)
        finally:
            await client.stop()
            await probe.close()
        with self._phases("report", "metrics, intervals, accounting"):
            return await self._report(replay, client, probe)

    @property
    def _planned(self) -> int:
        return min(int(self._options.events), len(self._data.live))

    async def _backfill(self) -> None:
        environment = self._mesh.environment("features")
        process = await asyncio.create_subprocess_exec(
            *(str(Environments.of_repository().python("light")), "-m", "streams.features.backfill", "--base", str(self._base_folder)),
            env=environment,
            cwd=REPOSITORY_ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode != 0:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise ConfigurationError(f"loading the base's features into Redis failed: {' '.join(last)}")

    def _probe(self) -> FreshnessProbe:
        """Fixed features: those of a user and an item that nobody knows."""
        spec = FeatureSpec.load(SPEC_PATH)
        unknown_item = merge_item_bytes(spec, [[None]], [None])
        nothing = build_features(spec, "probe", None, unknown_item, [[]], GlobalState())
        block = exposure_block.encode(nothing, spec.schema_hash)
        return FreshnessProbe(
            self._mesh.environment("recommender")["TRITON_URL"], item_id=next(iter(self._data.films)), features_block=block
        )

    async def _wait_ready(self, client: MeshClient, probe: FreshnessProbe) -> None:
        """Until Triton serves the base and an answer is whole."""
        deadline = time.monotonic() + _READY_LIMIT_S
        reason = "no answer yet"
        while time.monotonic() < deadline:
            try:
                await probe.state("probe")
                answer = await client.recommend("nobody", list(self._data.films)[:20], limit=1, idempotency_key="")
                if answer is not None and not answer.degraded_reason:
                    return
                reason = answer.degraded_reason if answer is not None else client.counts.last_error
            except InferenceServerException as error:
                reason = str(error)
            await asyncio.sleep(0.5)
        raise ConfigurationError(f"the mesh did not become ready within {_READY_LIMIT_S:.0f} s: {reason} (logs: {self._mesh.folder.logs})")

    def _replay(self, client: MeshClient, probe: FreshnessProbe) -> Replay:
        candidates = CandidateDrawer(list(self._data.films), SEED)
        counters = OnlineCounters()
        for rating in self._data.base:
            candidates.rated(rating)
            counters.add(rating.user_id, rating.item_id, float(rating.stars >= LIKE_STARS))
        self._sessions = sessions(self._data.live)
        speed = speed_for(self._sessions, active=ACTIVE_USERS, events_per_s=self._options.rate)
        return Replay(client, probe, candidates, counters, speed=speed, active=ACTIVE_USERS, max_events=self._planned)

    async def _play(self, replay: Replay, client: MeshClient, probe: FreshnessProbe) -> None:
        with Progress("Tunemesh learns") as progress:
            watch = Watch(progress, self._trainer, self._frozen, client=client, probe=probe, log=replay.log, planned_events=self._planned)
            shown = asyncio.create_task(watch.run())
            try:
                await replay.run(self._sessions)
            finally:
                shown.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await shown

    @asynccontextmanager
    async def _frozen_evaluator(self) -> AsyncIterator[None]:
        """Run the frozen copy beside the mesh; it is not part of it. When it dies it starts over: it keeps no state."""
        self._frozen_path().unlink(missing_ok=True)
        stop = asyncio.Event()
        keeper = asyncio.create_task(self._keep_frozen(stop))
        try:
            yield
        finally:
            stop.set()
            await keeper

    def _frozen_path(self) -> Path:
        return self._out / "frozen.jsonl"

    async def _keep_frozen(self, stop: asyncio.Event) -> None:
        command = [str(Environments.of_repository().python("ml")), "-m", "loadtests.demo.frozen", "--base", str(self._base_folder)]
        command += ["--spec", str(SPEC_PATH), "--kafka", self._kafka, "--out", str(self._frozen_path())]
        while not stop.is_set():
            with self._frozen_log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY_ROOT, stdout=log, stderr=log)
            waits = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(stop.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if process.returncode is None:
                process.terminate()
                await process.wait()
            for wait in waits:
                wait.cancel()
            await asyncio.sleep(0.2)

    async def _drain(self, replay: Replay) -> None:
        accepted = max(replay.log.acknowledged.values(), default=0)
        if not await self._trainer.wait_watermark(accepted, limit_s=_DRAIN_LIMIT_S):
            raise RuntimeError(
                f"the trainer had not learned everything {_DRAIN_LIMIT_S:.0f} s after the replay (logs: {self._mesh.folder.logs})"
            )
        # The last windows close and their negatives are learned; and the frozen copy catches up.
        await asyncio.gather(
            _quiet(lambda: self._trainer.last.samples_trained, self._trainer.refresh),
            _quiet(lambda: self._frozen.bytes_read, self._frozen.refresh),
        )

    async def _account(self, log: ReplayLog) -> Accounting:
        """Place every acknowledged feedback; on a loaded machine the joiner or the trainer may need another moment for the last ones."""
        for _ in range(_ACCOUNT_TRIES):
            placed = await asyncio.to_thread(account, self._kafka, log.acknowledged, [outcome.request_id for outcome in log.outcomes])
            if not placed.missing and (await self._trainer.refresh()).samples_trained == placed.samples:
                break
            await asyncio.sleep(_QUIET_S)
            await _quiet(lambda: self._trainer.last.samples_trained, self._trainer.refresh)
        return placed

    async def _report(self, replay: Replay, client: MeshClient, probe: FreshnessProbe) -> dict[str, Any]:
        log, counts = replay.log, client.counts
        placed = await self._account(log)
        status = await self._trainer.refresh()
        await self._trainer.close()
        scored = report.side_by_side(log.outcomes, self._frozen.by_request, self._data.known_users)
        parts = {name: scored.subset(rows) for name, rows in (("known", scored.known), ("new", ~scored.known))}
        report.plot(scored, probe.log.seconds, self._out / "report.png")
        return {
            "events_replayed": len(log.outcomes),
            "failed_rpcs": counts.failed,
            "retried_rpcs": counts.retried,
            "recommend_ms": report.percentiles(counts.recommend_latency_ms),
            "event_to_learned_s": report.percentiles(probe.log.seconds) | {"probes": len(probe.log.seconds), "missed": probe.log.missed},
            "events_not_compared": len(log.outcomes) - len(scored.users),
            **report.quality(scored),
            "by_user_kind": {name: report.quality(part) if len(set(part.users)) > 1 else None for name, part in parts.items()},
            "degraded_answers": log.degraded,
            "open_recommendations": {
                "answers": log.open_answers,
                "items": log.open_items,
                "already_seen": log.open_seen_items,
                "reasons": log.open_reasons,
            },
            "accounting": placed.as_dict(),
            "trainer": {"samples_trained": status.samples_trained, "duplicates_skipped": status.duplicates_skipped},
            "model_version": f"{status.epoch}.{status.seq}",
            "restarts": self._mesh.restarts(),
            "events_per_s": _rate([outcome.at_s for outcome in log.outcomes]),
        }


async def _quiet(value: Callable[[], int], refresh: Callable[[], Awaitable[object]]) -> None:
    """Return once a value has stood still for `_QUIET_S`, or after the drain's limit."""
    deadline = time.monotonic() + _DRAIN_LIMIT_S
    seen, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        await refresh()
        if value() != seen:
            seen, since = value(), time.monotonic()
        elif time.monotonic() - since >= _QUIET_S:
            return
        await asyncio.sleep(0.5)


def _rate(times: list[float]) -> float:
    return len(times) / float(np.ptp(times)) if len(times) > 1 else 0.0
