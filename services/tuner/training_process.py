"""Training in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from services.common.language.adapter_name import AdapterName
from services.tuner import job as jobs
from services.tuner.neighbours import TrainingFailed, Tuning

_PROGRESS_S = 0.5
_LOG_FILE = "train.log"


class TrainingProcess(Tuning):
    """Runs `services.tuner.train` in a process of its own; it ends with this one, however that ends."""

    def __init__(self, work_dir: Path, *, keep: int, timeout_s: float) -> None:
        """Each training has a folder named like its adapter in `work_dir`; the newest `keep` of them stay."""
        self._work_dir, self._keep, self._timeout_s = work_dir, keep, timeout_s

    def folder(self, name: AdapterName) -> Path:
        """Return the folder of a training."""
        return self._work_dir / str(name)

    @override
    def adapter_folder(self, name: AdapterName) -> str:
        return str(self.folder(name) / jobs.ADAPTER_FOLDER)

    @override
    async def train(self, name: AdapterName, job: jobs.Job, on_step: Callable[[jobs.Step], None]) -> jobs.TrainingResult:
        """Raises:
        TrainingFailed: it ended without a result, or took longer than the limit.
        """
        folder = self.folder(name)
        await asyncio.to_thread(self._prepare, folder, job)
        with (folder / _LOG_FILE).open("wb") as log:
            # Its standard input is a pipe that only this process holds: when this one dies, even by kill -9, the training reads its end.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.tuner.train",
                "--end-with-stdin",
                str(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._watch(process, folder, on_step)
        except TimeoutError as error:
            raise TrainingFailed(
                f"the training of {name} took longer than {self._timeout_s:.0f} s and was ended (log: {folder / _LOG_FILE})"
            ) from error
        finally:
            await _end(process)
        if process.returncode != 0:
            reason = jobs.read_error(folder) or "it left no reason; the system kills a process like this when memory runs out"
            raise TrainingFailed(f"the training of {name} ended with exit code {process.returncode}: {reason} (log: {folder / _LOG_FILE})")
        return jobs.read_result(folder)

    async def _watch(self, process: asyncio.subprocess.Process, folder: Path, on_step: Callable[[jobs.Step], None]) -> None:
        seen = 0
        while True:
            ended = process.returncode is not None
            steps = jobs.read_steps(folder)
            for step in steps[seen:]:
                on_step(step)
            seen = len(steps)
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _PROGRESS_S)

    def _prepare(self, folder: Path, job: jobs.Job) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if self._work_dir.is_dir():
            others = sorted((path for path in self._work_dir.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
            for old in others[: max(0, len(others) - self._keep + 1)]:
                shutil.rmtree(old, ignore_errors=True)
        jobs.write_job(folder, job)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
