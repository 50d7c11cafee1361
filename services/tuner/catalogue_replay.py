"""Where replay comes from: a file of examples, or the items of catalog.v1 to make them of."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from services.common.events.catalog import CatalogItem
from services.common.events.chat import MAX_CONTEXT_PASSAGES, Passage
from services.common.events.content import MalformedRecord
from services.common.events.topics import CATALOG
from services.common.events.wire.catalog import changes_of
from services.common.language.evaluation import MAX_TEXT_CHARS
from services.common.platform.errors import InvalidInput
from services.common.platform.kafka import read_compacted
from services.common.platform.topic_follower import Record
from services.tuner.evaluation_folder import MAX_FILE_BYTES
from services.tuner.neighbours import ReplaySource
from services.tuner.replay import ReplayExample

_log = logging.getLogger(__name__)


class CatalogueReplay(ReplaySource):
    """Replay examples from a file, or items of catalog.v1 to make them of."""

    def __init__(self, bootstrap_servers: str, *, client_id: str, folder: Path, file: Path | None, max_items: int) -> None:
        """`folder` has the tasks' own files, TASK.replay.jsonl; `file` is for the others. Of more than `max_items` items the first by
        id are used.
        """
        self._bootstrap_servers, self._client_id, self._max_items = bootstrap_servers, client_id, max_items
        self._folder, self._file = folder, file

    @override
    async def given(self, task: str) -> Sequence[ReplayExample] | None:
        """Return the examples of the task's file, else of the one for all, None without one. Raises InvalidInput when it cannot be used."""
        return await asyncio.to_thread(self._given, task)

    def _given(self, task: str) -> Sequence[ReplayExample] | None:
        own = self._folder / f"{task}.replay.jsonl"
        file = own if own.is_file() else self._file
        return read_replay_file(file) if file is not None else None

    @override
    async def items(self) -> Sequence[CatalogItem]:
        """Return the items of catalog.v1. Raises Unavailable when the broker cannot be read."""
        return await asyncio.to_thread(self._items)

    def _items(self) -> list[CatalogItem]:
        newest = read_compacted(self._bootstrap_servers, CATALOG.name, client_id=self._client_id)
        in_order = sorted(newest.values(), key=lambda record: record.offset)
        items: dict[str, CatalogItem] = {}
        for change in changes_of(in_order, _leave_out):
            if isinstance(change, CatalogItem):
                items[change.item_id] = change
            else:
                items.pop(change.item_id, None)
        return [items[item_id] for item_id in sorted(items)[: self._max_items]]


def _leave_out(record: Record, error: MalformedRecord) -> None:
    _log.warning("the catalogue's record at offset %d is left out: %s", record.offset, error)


def read_replay_file(path: Path) -> list[ReplayExample]:
    """Return the examples of a JSON-lines file: {"question": …, "context": [{"title": …, "text": …}], "answer": …}.

    Raises:
        InvalidInput: it cannot be read; the message names the line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path} has more than {MAX_FILE_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    return [_replay_example(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _replay_example(line: str, where: str) -> ReplayExample:
    try:
        row: Any = json.loads(line)
        passages = tuple(Passage(passage["title"], passage["text"]) for passage in row["context"])
        example = ReplayExample(question=row["question"], passages=passages, answer=row["answer"])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"{where}: it must be an object with question, context (title and text each) and answer: {error!r}") from error
    texts = [example.question, example.answer, *(text for passage in passages for text in (passage.title, passage.text))]
    are_texts = all(isinstance(text, str) and 1 <= len(text) <= MAX_TEXT_CHARS for text in texts)
    if not 1 <= len(passages) <= MAX_CONTEXT_PASSAGES or not are_texts:
        raise InvalidInput(f"{where}: it must have 1 to {MAX_CONTEXT_PASSAGES} passages, and each text 1 to {MAX_TEXT_CHARS} characters")
    return example
