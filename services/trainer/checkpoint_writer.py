"""Writes checkpoints and bases of the ranker worker: cut in the worker's thread, written by another one while learning goes on.

One at a time. All methods run in the worker's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tunemesh.events.v1.delta_pb2 import BasePointer

from services.common.platform.errors import CorruptArtifact, ServiceError
from services.trainer.checkpoints import Checkpoint
from services.trainer.epoch import Epoch

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Knows which checkpoint was written last, and whether one is being written.

    Attributes:
        last_url: of the newest durable checkpoint that this process wrote; empty before the first.
        flush_dead_letters: called before each write, and to be called before one that goes another way.
    """

    def __init__(self, flush_dead_letters: Callable[[], None]) -> None:
        """`flush_dead_letters`: called before each write: a record that was set aside lies below the checkpoint's offsets.

        It must not be lost with this process, since the next start does not read it again.
        """
        self.last_url = ""
        self.flush_dead_letters = flush_dead_letters
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[tuple[str, BasePointer | None]] | None = None
        self._written_offsets: list[int] = []

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint or a base is under way."""
        return self._writing is not None

    def start(self, epoch: Epoch) -> None:
        """Cut here, and write in the other thread; do nothing when nothing new was learned, or while the publish gate refuses it."""
        offsets = epoch.merge.position.offsets
        if offsets == self._written_offsets or epoch.publisher.refusal:
            return
        self._writing = self._thread.submit(self._write, epoch, epoch.cut())
        self._written_offsets = offsets

    def start_base(self, epoch: Epoch, checkpoint: Checkpoint) -> None:
        """Write a checkpoint that names a base, then that base, and announce it, in the other thread. Nothing else may be under way."""
        self._writing = self._thread.submit(self._write_base, epoch, checkpoint)
        self._written_offsets = checkpoint.cut.position.offsets

    def collect(self) -> BasePointer | Exception | None:
        """Take note of what was under way, if it is done by now; return the base that was announced, or why none could be."""
        if self._writing is None or not self._writing.done():
            return None
        writing, self._writing = self._writing, None
        try:
            self.last_url, pointer = writing.result()
        except (ServiceError, CorruptArtifact) as error:
            self._written_offsets = []
            _log.error("the checkpoint was not written, trying again at the next interval: %s", error)
            return error
        return pointer

    def wait(self) -> BasePointer | Exception | None:
        """Return when nothing is under way; the result is that of `collect`."""
        if self._writing is not None:
            self._writing.exception()
        return self.collect()

    def _write(self, epoch: Epoch, checkpoint: Checkpoint) -> tuple[str, BasePointer | None]:
        # What was learned since the last delta has not met the gate yet.
        if reason := epoch.refusal_of(checkpoint):
            raise CorruptArtifact(f"the publish gate refuses it: {reason}")
        return self.write(epoch, checkpoint), None

    def _write_base(self, epoch: Epoch, checkpoint: Checkpoint) -> tuple[str, BasePointer | None]:
        return self.write(epoch, checkpoint), epoch.announce_base(checkpoint)

    def write(self, epoch: Epoch, checkpoint: Checkpoint) -> str:
        """Write a checkpoint in the calling thread and return its URL.

        Raises:
            Unavailable: the broker or the store does not answer.
        """
        self.flush_dead_letters()
        return epoch.stores.checkpoints.write(checkpoint, now_ms=epoch.now_ms())

    def note(self, url: str, offsets: list[int]) -> None:
        """Take note of a checkpoint that was written by `write`, and of the sample offsets that it continues at."""
        self.last_url, self._written_offsets = url, offsets

    def close(self) -> None:
        """Return when nothing is under way; nothing can be started afterwards."""
        self._thread.shutdown()
