"""What the tuner hands to the training process, and what comes back: files in one folder. Imports no torch.

FOLDER/job.json         Job: written by the tuner before the process starts
FOLDER/progress.jsonl   one Step a line, appended while it trains
FOLDER/adapter/         adapter_model.safetensors, adapter_config.json: complete when result.json is there
FOLDER/result.json      TrainingResult, renamed into place last
FOLDER/error.txt        one line, when the process gave up
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.events.chat import Message
from services.common.platform.errors import InvalidInput
from services.tuner.dataset import TrainingExample

FORMAT_VERSION = 1
ADAPTER_FOLDER = "adapter"

_JOB, _PROGRESS, _RESULT, _ERROR = "job.json", "progress.jsonl", "result.json", "error.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """How a LoRA is trained. Source of LoRA: Hu et al. 2021; of AdamW: Loshchilov and Hutter 2017.

    Attributes:
        rank, alpha: of the low-rank update; it is scaled by alpha / rank.
        target_modules: names of the linear layers that get one.
        learning_rate: highest; reached after `warm_up_steps`, then falling in a line to zero at the last step.
        num_steps, batch_size: batches of so many examples.
        max_tokens: of prompt and answer together; a longer example is left out, never cut.
        dtype: "auto", "bfloat16" or "float32", of the frozen base; the LoRA itself is always fp32.
        num_threads: of torch; 0 takes every core.
        seed: of the first weights; the batches are in the job.
    """

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    learning_rate: float
    num_steps: int
    warm_up_steps: int
    batch_size: int
    max_tokens: int
    dtype: str
    num_threads: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training. `batches` are row numbers of `examples`: what is trained on, in which order, was decided before."""

    base_folder: str
    base_name: str
    hyper_parameters: HyperParameters
    examples: tuple[TrainingExample, ...]
    batches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step, counted from 1. `loss` is the mean over answer tokens, in nats."""

    step: int
    loss: float
    gradient_norm: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What came of it.

    Attributes:
        losses: of each step.
        seconds: that it took.
        norms: Euclidean norm of each LoRA layer's update (alpha / rank · B·A); NaN and infinity are kept as they are.
        num_answer_tokens: that were predicted.
        left_out: rows of the job's examples that are longer than `max_tokens`.
    """

    losses: tuple[float, ...]
    seconds: float
    norms: dict[str, float]
    num_answer_tokens: int
    left_out: tuple[int, ...]


def write_job(folder: Path, job: Job) -> None:
    """Write job.json into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _JOB, {"format_version": FORMAT_VERSION, **dataclasses.asdict(job)})


def read_job(folder: Path) -> Job:
    """Read job.json back.

    Raises:
        InvalidInput: it is not there, or not of this format.
    """
    fields = _read(folder / _JOB)
    if fields.pop("format_version", None) != FORMAT_VERSION:
        raise InvalidInput(f"{folder / _JOB} is not of format {FORMAT_VERSION}")
    hyper = fields["hyper_parameters"]
    return Job(
        base_folder=fields["base_folder"],
        base_name=fields["base_name"],
        hyper_parameters=HyperParameters(**{**hyper, "target_modules": tuple(hyper["target_modules"])}),
        examples=tuple(_example(row) for row in fields["examples"]),
        batches=tuple(tuple(rows) for rows in fields["batches"]),
    )


def append_step(folder: Path, step: Step) -> None:
    """Append one line to progress.jsonl."""
    with (folder / _PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(step)) + "\n")


def read_steps(folder: Path) -> list[Step]:
    """Return the steps so far; a half-written last line is left out."""
    try:
        lines = (folder / _PROGRESS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [Step(**json.loads(line)) for line in lines if line.endswith("\n")]


def write_result(folder: Path, result: TrainingResult) -> None:
    """Write result.json, whole or not at all."""
    _write(folder / _RESULT, dataclasses.asdict(result))


def read_result(folder: Path) -> TrainingResult:
    """Read result.json back.

    Raises:
        InvalidInput: it is not there: the training did not end.
    """
    fields = _read(folder / _RESULT)
    return TrainingResult(**{**fields, "losses": tuple(fields["losses"]), "left_out": tuple(fields["left_out"])})


def write_error(folder: Path, message: str) -> None:
    """Leave the reason of a failure, on one line."""
    (folder / _ERROR).write_text(" ".join(message.split()) + "\n", encoding="utf-8")


def read_error(folder: Path) -> str:
    """Return the reason of a failure; empty when the process left none."""
    path = folder / _ERROR
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _example(row: dict[str, Any]) -> TrainingExample:
    return TrainingExample(messages=_turns(row["messages"]), answer=row["answer"], is_replay=row["is_replay"])


def _turns(rows: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=row["role"], content=row["content"]) for row in rows)


def _write(path: Path, fields: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(fields, indent=1), encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 - atomic, and the same on every platform


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} is not there") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{path} is not an object")
    return fields
