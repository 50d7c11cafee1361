"""The tuner's way to Kafka, to files and to the training process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from tunemesh.events.v1 import example_pb2

from services.common.events.catalog import CatalogItem
from services.common.events.chat import MAX_CONTEXT_PASSAGES, Passage
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.topics import CATALOG
from services.common.events.wire.catalog import read_item
from services.common.events.wire.chat import messages_of
from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName, is_task
from services.common.language.evaluation import MAX_TEXT_CHARS, Evaluation, parse_evaluation
from services.common.language.lora_store import AdapterStore
from services.common.platform.errors import CorruptArtifact, InvalidInput, NotFound
from services.common.platform.kafka import read_compacted
from services.common.platform.topic_follower import Record
from services.tuner import job as jobs
from services.tuner.examples import Demonstration, ExampleBook
from services.tuner.neighbours import TrainingFailed
from services.tuner.replay import ReplayExample

_MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_MESSAGES = 64
_MAX_ANSWER_CHARS = 64 * 1024
_PROGRESS_S = 0.5
_LOG_FILE = "train.log"

_log = logging.getLogger(__name__)


class Examples:
    """llm.examples.v1 as a book that any thread may read; one follower's thread writes it (see topic_follower.Reader)."""

    def __init__(self, book: ExampleBook) -> None:
        """Begin with an empty book."""
        self._book, self._lock = book, threading.Lock()

    def begin(self, records: Sequence[Record]) -> None:
        """Start over with these records. An empty topic is a broker that lost its log: what was known stays."""
        with self._lock:
            if records:
                self._book.clear()
            self._take(records)

    def extend(self, records: Sequence[Record]) -> None:
        """Take these in."""
        with self._lock:
            self._take(records)

    def tasks(self) -> list[str]:
        """See ExampleBook."""
        with self._lock:
            return self._book.tasks()

    def demonstrations(self, task: str) -> list[Demonstration]:
        """See ExampleBook."""
        with self._lock:
            return self._book.demonstrations(task)

    def num_demonstrations(self, task: str, *, since_ms: int = 0) -> int:
        """See ExampleBook."""
        with self._lock:
            return self._book.num_demonstrations(task, since_ms=since_ms)

    def num_judged(self, task: str) -> int:
        """See ExampleBook."""
        with self._lock:
            return self._book.num_judged(task)

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._take_one(parse_value(record.value, record.headers, example_pb2.LlmExample))
            except (MalformedRecord, InvalidInput) as error:
                _log.warning("the example at offset %d is left out: %s", record.offset, error)

    def _take_one(self, example: example_pb2.LlmExample) -> None:
        if not example.example_id or not is_task(example.task):
            raise InvalidInput(f"it has no id, or its task {example.task[:80]!r} can be none")
        if example.kind == example_pb2.EXAMPLE_KIND_JUDGED:
            self._book.add_judged(example.task, example.example_id)
        elif example.kind == example_pb2.EXAMPLE_KIND_DEMONSTRATION:
            self._book.add_demonstration(example.task, demonstration_of(example))


def demonstration_of(example: example_pb2.LlmExample) -> Demonstration:
    """Return the example as a demonstration.

    Raises:
        InvalidInput: there is no prompt or no answer, or they are too long.
    """
    if not 1 <= len(example.messages) <= _MAX_MESSAGES:
        raise InvalidInput(f"its prompt has {len(example.messages)} messages, 1 to {_MAX_MESSAGES} are taken")
    if not example.answer.strip() or len(example.answer) > _MAX_ANSWER_CHARS:
        raise InvalidInput(f"its answer has {len(example.answer)} characters, 1 to {_MAX_ANSWER_CHARS} are taken")
    return Demonstration(
        example_id=example.example_id,
        question=example.question,
        messages=messages_of(example.messages),
        answer=example.answer,
        created_at_ms=example.created_at_ms,
    )


class EvaluationFolder:
    """`FOLDER/TASK.yaml`, read anew for each tune. Every method blocks for a small file."""

    def __init__(self, folder: Path) -> None:
        """The folder need not exist yet."""
        self._folder = folder

    def file(self, task: str) -> Path:
        """Return where the task's file is, or would be."""
        return self._folder / f"{task}.yaml"

    def exists(self, task: str) -> bool:
        """Whether the file is there."""
        return self.file(task).is_file()

    def load(self, task: str) -> Evaluation:
        """Return the file's content.

        Raises:
            NotFound: there is no file.
            InvalidInput: it is too large, not YAML, or not of the form that `evaluation` describes.
        """
        path = self.file(task)
        try:
            size = path.stat().st_size
            if size > _MAX_FILE_BYTES:
                raise InvalidInput(f"{path} has {size} bytes; at most {_MAX_FILE_BYTES} are read")
            return parse_evaluation(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
        except FileNotFoundError as error:
            raise NotFound(f"there is no evaluation file {path}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput(f"{path} cannot be read: {' '.join(str(error).split())}") from error


class CatalogueReplay:
    """Replay examples from a file, or items of catalog.v1 to make them of."""

    def __init__(self, bootstrap_servers: str, *, client_id: str, file: Path | None, max_items: int) -> None:
        """Of more than `max_items` the first by id are used."""
        self._bootstrap_servers, self._client_id, self._file, self._max_items = bootstrap_servers, client_id, file, max_items

    async def given(self) -> Sequence[ReplayExample] | None:
        """See `tune.ReplaySource`. Raises InvalidInput when the file cannot be used."""
        return await asyncio.to_thread(read_replay_file, self._file) if self._file is not None else None

    async def items(self) -> Sequence[CatalogItem]:
        """See `tune.ReplaySource`. Raises Unavailable when the broker cannot be read."""
        return await asyncio.to_thread(self._items)

    def _items(self) -> list[CatalogItem]:
        records = read_compacted(self._bootstrap_servers, CATALOG.name, client_id=self._client_id)
        items = []
        for key in sorted(records)[: self._max_items]:
            record = records[key]
            try:
                items.append(read_item(record.key, record.value, record.headers))
            except MalformedRecord as error:
                _log.warning("the catalogue's record at offset %d is left out: %s", record.offset, error)
        return items


def read_replay_file(path: Path) -> list[ReplayExample]:
    """Return the examples of a JSON-lines file: {"question": …, "context": [{"title": …, "text": …}], "answer": …}.

    Raises:
        InvalidInput: it cannot be read; the message names the line.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InvalidInput(f"{path} has more than {_MAX_FILE_BYTES} bytes")
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


class Adapters:
    """The adapter store off the event loop; see AdapterStore."""

    def __init__(self, store: AdapterStore) -> None:
        """Take the store."""
        self._store = store

    async def next_name(self, base: str, task: str) -> AdapterName:
        """See AdapterStore."""
        return await asyncio.to_thread(self._store.next_name, base, task)

    async def publish(self, name: AdapterName, folder: str, manifest: AdapterManifest) -> AdapterManifest:
        """See AdapterStore."""
        return await asyncio.to_thread(self._store.publish, name, folder, manifest)

    async def write_verdict(self, verdict: AdapterVerdict) -> None:
        """See AdapterStore."""
        await asyncio.to_thread(self._store.write_verdict, verdict)

    async def newest_decided_tune_ms(self, base: str, task: str) -> int:
        """Return when the newest tune began that the gate decided about, Unix milliseconds; 0 when there is none."""
        return await asyncio.to_thread(self._newest_decided_tune_ms, base, task)

    def _newest_decided_tune_ms(self, base: str, task: str) -> int:
        for name in reversed([name for name in self._store.names(task) if name.base == base]):
            try:
                if self._store.verdict(name) is not None:
                    return self._store.manifest(name).created_at_ms
            except CorruptArtifact as error:
                _log.warning("when %s was tuned is not known: %s", name, error)
        return 0


class TrainingProcess:
    """Runs `services.tuner.train` in a process of its own; it ends with this one, however that ends."""

    def __init__(self, work_dir: Path, *, keep: int, timeout_s: float) -> None:
        """Each training has a folder named like its adapter in `work_dir`; the newest `keep` of them stay."""
        self._work_dir, self._keep, self._timeout_s = work_dir, keep, timeout_s

    def folder(self, name: AdapterName) -> Path:
        """Return the folder of a training."""
        return self._work_dir / str(name)

    def adapter_folder(self, name: AdapterName) -> str:
        """See `tune.Tuning`."""
        return str(self.folder(name) / jobs.ADAPTER_FOLDER)

    async def train(self, name: AdapterName, job: jobs.Job, on_step: Callable[[jobs.Step], None]) -> jobs.TrainingResult:
        """See `tune.Tuning`.

        Raises:
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
            reason = jobs.read_error(folder) or "it left no reason; was it killed for want of memory?"
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
