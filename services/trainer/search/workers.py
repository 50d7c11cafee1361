"""Runs trials in several processes over one study. Each reads the events itself, once; one that dies ends no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from services.trainer.search.study import Study

_POLL_S = 0.2


def check_parent(parent: int) -> Callable[[], None]:
    """Return what ends this process when its parent is not the one that started it any more."""

    def check() -> None:
        if os.getppid() != parent:
            sys.exit(f"the search (process {parent}) is gone")

    return check


def run_workers(
    study: Study,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    jobs: int,
    *,
    is_over: Callable[[], bool],
    tell: Callable[[str], None],
) -> None:
    """Keep `jobs` processes at work until none of them has anything left to do.

    Args:
        study: whose trials they run.
        target: a module's function, called with `arguments` and the number of the worker; it returns when a limit is reached.
        arguments: of the target.
        jobs: how many.
        is_over: whether a worker that died is not to be replaced: a limit is reached.
        tell: is told of deaths.
    """
    context = multiprocessing.get_context("spawn")

    def started(number: int) -> BaseProcess:
        process = context.Process(target=target, args=(*arguments, number), daemon=True)
        process.start()
        return process

    running = {number: started(number) for number in range(jobs)}
    try:
        while running:
            time.sleep(_POLL_S)
            for number, process in list(running.items()):
                if process.is_alive():
                    continue
                del running[number]
                if process.exitcode == 0:
                    continue
                how = _how(process.exitcode or 0)
                closed = study.end_of_worker(number, f"its process ended with {how}, twice")
                tell(
                    f"worker {number} ended with {how}"
                    + (f"; trial {closed} is tried once more, or has failed" if closed is not None else "")
                )
                if closed is not None and not is_over():
                    running[number] = started(number)
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _how(exit_code: int) -> str:
    if exit_code < 0:
        short = "; memory may have been short" if exit_code == -signal.SIGKILL else ""
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name}){short}"
    return f"exit code {exit_code}"
