"""Writes the checkpoints of the ranker worker: cut in the worker's thread, written by another one while learning goes on.

One at a time. All methods run in the worker's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from services.common.platform.errors import CorruptArtifact, Unavailable
from services.trainer.checkpoints import Checkpoint
from services.trainer.epoch import Epoch

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Knows which checkpoint was written last, and whether one is being written.

    Attributes:
        last_url: of the newest durable checkpoint that this process wrote; empty before the first.
    """

    def __init__(self, flush_dead_letters: Callable[[], None]) -> None:
        """`flush_dead_letters`: called before each write: a record that was set aside lies below the checkpoint's offsets.

        It must not be lost with this process, since the next start does not read it again.
        """
        self.last_url = ""
        self._flush_dead_letters = flush_dead_letters
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None
        self._written_offsets: list[int] = []

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._writing is not None

    def start(self, epoch: Epoch) -> None:
        """Cut here, and write in the other thread; do nothing when nothing new was learned, or while the publish gate refuses it."""
        offsets = epoch.merge.position.offsets
        if offsets == self._written_offsets or epoch.publisher.refusal:
            return
        self._writing = self._thread.submit(self.write, epoch, epoch.cut())
        self._written_offsets = offsets

    def collect(self) -> None:
        """Take note of the checkpoint under way, if it is written by now."""
        if self._writing is None or not self._writing.done():
            return
        writing, self._writing = self._writing, None
        try:
            self.last_url = writing.result()
        except (Unavailable, CorruptArtifact) as error:
            self._written_offsets = []
            _log.error("the checkpoint was not written, trying again at the next interval: %s", error)

    def wait(self) -> None:
        """Return when no checkpoint is under way."""
        if self._writing is not None:
            self._writing.exception()
            self.collect()

    def write(self, epoch: Epoch, checkpoint: Checkpoint) -> str:
        """Write a checkpoint in the calling thread and return its URL.

        Raises:
            Unavailable: the broker or the store does not answer.
        """
        self._flush_dead_letters()
        return epoch.stores.checkpoints.write(checkpoint, now_ms=epoch.now_ms())

    def note(self, url: str, offsets: list[int]) -> None:
        """Take note of a checkpoint that was written by `write`, and of the sample offsets that it continues at."""
        self.last_url, self._written_offsets = url, offsets

    def close(self) -> None:
        """Return when no checkpoint is under way; none can be started afterwards."""
        self._thread.shutdown()
