"""The document that `tunemesh why` prints, from the records of one request. Pure.

Keys of both kinds: kind, request_id, user_id, at, variant, experiment, model_version, degraded_reason, logged_at (topic, partition,
offset), feedback, dead_letters. Of a recommendation also: context and profile (what the request brought), items (rank, item_id, score,
channel, propensity, features, rows, samples), user_features, user_rows, history, sequences; rows are those of tables, by feature, as
`services.common.ranker.declared.row_names` calls them. Of an answer also: task, question, answer, messages, prompt_version,
passage_ids, times and examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.example_pb2 import ExampleKind, LlmExample
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.events.generation import Generation
from services.common.events.topics import EXPOSURES, GENERATIONS
from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.declared.row_names import RowNames, row_names
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.mesh.operate.times import iso

MessageT = TypeVar("MessageT")

# Two decimals more than the half-precision numbers of the block hold.
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Placed(Generic[MessageT]):
    """A message and where its record lies."""

    message: MessageT
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Learned:
    """How far the trainer is: its version ("epoch.seq"), the next sample offset per partition, and what rollbacks left out.

    Attributes:
        passed_over: (partition, first offset, next offset).
    """

    version: str
    source_offsets: Sequence[int]
    passed_over: Sequence[tuple[int, int, int]] = ()

    def covers(self, sample: Placed[SampleRecord]) -> bool:
        """Whether the sample is in the trainer's weights."""
        is_reached = sample.partition < len(self.source_offsets) and sample.offset < self.source_offsets[sample.partition]
        return is_reached and not self.leaves_out(sample)

    def leaves_out(self, sample: Placed[SampleRecord]) -> bool:
        """Whether a rollback passed over the sample."""
        return any(partition == sample.partition and first <= sample.offset < end for partition, first, end in self.passed_over)


def recommendation(
    placed: Placed[Exposure],
    samples: Sequence[Placed[SampleRecord]],
    feedback: Sequence[Placed[Feedback]],
    letters: Sequence[DeadLetter],
    spec: FeatureSpec,
    learned: Learned | None,
) -> dict[str, Any]:
    """Return the document of a recommendation."""
    exposure = placed.message
    features, why_not = _features(exposure, spec)
    rows = _rows(exposure, features, spec)
    return {
        "kind": "recommendation",
        **_common(placed.message, "exposed_at_ms", EXPOSURES.name, placed.partition, placed.offset),
        "candidates_given": exposure.candidates_given,
        "context": dict(exposure.context),
        "profile": dict(exposure.profile),
        "schema_hash": exposure.schema_hash,
        "features_missing": why_not,
        "user_features": _named(spec.user_columns, features.user_U) if features is not None else {},
        "user_rows": rows.user,
        "history": _history(features) if features is not None else [],
        "sequences": {name: list(events) for name, events in rows.sequences.items()},
        "items": _items(exposure, features, rows, spec, _samples_by_item(samples, learned)),
        "learned_up_to": learned.version if learned is not None else "",
        "feedback": [_feedback(each.message) for each in feedback],
        "dead_letters": [_letter(letter) for letter in letters],
    }


def generation(
    placed: Placed[Generation],
    feedback: Sequence[Placed[Feedback]],
    examples: Sequence[Placed[LlmExample]],
    letters: Sequence[DeadLetter],
) -> dict[str, Any]:
    """Return the document of an answer."""
    answer = placed.message
    return {
        "kind": "generation",
        **_common(answer, "started_at_ms", GENERATIONS.name, placed.partition, placed.offset),
        "task": answer.task,
        "question": answer.question,
        "answer": answer.answer,
        "finish_reason": answer.finish_reason,
        "prompt_version": answer.prompt_version,
        "messages": [{"role": message.role, "content": message.content} for message in answer.messages],
        "passage_ids": list(answer.passage_ids),
        "tokens": {"prompt": answer.usage.prompt_tokens, "completion": answer.usage.completion_tokens},
        "first_token_ms": _after(answer.first_token_at_ms, answer.started_at_ms),
        "finished_ms": _after(answer.finished_at_ms, answer.started_at_ms),
        "examples": [_example(each) for each in examples],
        "feedback": [_feedback(each.message) for each in feedback],
        "dead_letters": [_letter(letter) for letter in letters],
    }


def _common(message: Any, time_field: str, topic: str, partition: int, offset: int) -> dict[str, Any]:
    return {
        "request_id": message.request_id,
        "user_id": message.user_id,
        "at": iso(getattr(message, time_field)),
        "experiment": message.experiment,
        "variant": message.variant,
        "model_version": message.model_version,
        "degraded_reason": message.degraded_reason,
        "logged_at": {"topic": topic, "partition": partition, "offset": offset},
    }


def _features(exposure: Exposure, spec: FeatureSpec) -> tuple[Features | None, str]:
    """Return the decoded features, or why there are none."""
    if not exposure.features_block:
        return None, "the answer was made without features"
    try:
        features = exposure_block.decode(exposure.features_block, spec)
    except CorruptArtifact as error:
        return None, str(error)
    if len(features) != len(exposure.item_ids):
        return None, f"the block has rows of {len(features)} items, the exposure has {len(exposure.item_ids)}"
    return features, ""


def _rows(exposure: Exposure, features: Features | None, spec: FeatureSpec) -> RowNames:
    """Return which rows of tables the declared features read."""
    if features is None or features.keys is None:
        return RowNames({}, [{} for _ in exposure.item_ids], {})
    brought = {"profile": exposure.profile, "context": exposure.context}
    return row_names(spec.plan, features.keys, item_ids=exposure.item_ids, **brought)


def _named(names: Sequence[str], values: Any) -> dict[str, float]:
    return {name: round(float(value), _DIGITS) for name, value in zip(names, values, strict=True)}


def _history(features: Features) -> list[dict[str, Any]]:
    """The latest items that the ranker attended to, newest first; by table key, which is the item's id when that is a number."""
    return [
        {"item_key": int(key), "value": round(float(value), _DIGITS)}
        for key, value in zip(features.history_keys_L, features.history_values_L, strict=True)
    ]


def _items(
    exposure: Exposure, features: Features | None, rows: RowNames, spec: FeatureSpec, samples: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    names = spec.item_columns
    items = []
    for row, item_id in enumerate(exposure.item_ids):
        items.append(
            {
                "rank": row + 1,
                "item_id": item_id,
                "score": exposure.scores[row] if row < len(exposure.scores) else None,
                "channel": exposure.reasons[row] if row < len(exposure.reasons) else "",
                "propensity": exposure.propensities[row] if row < len(exposure.propensities) else 1.0,
                "features": _named(names, features.items_NF[row]) if features is not None else {},
                "rows": rows.items[row],
                "samples": samples.get(item_id, []),
            }
        )
    return items


def _samples_by_item(samples: Sequence[Placed[SampleRecord]], learned: Learned | None) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for placed in samples:
        for sample in placed.message.group.samples:
            if sample.sample_id in seen:
                continue  # a joiner that began again repeats ids; the trainer takes each once
            seen.add(sample.sample_id)
            found[sample.item_id].append(
                {
                    "sample_id": f"{sample.sample_id:016x}",
                    "labels": {label.task: label.value for label in sample.labels},
                    "revision": sample.revision,
                    "feedback_id": sample.feedback_id,
                    "partition": placed.partition,
                    "offset": placed.offset,
                    "is_learned": learned.covers(placed) if learned is not None else None,
                    "is_passed_over": learned.leaves_out(placed) if learned is not None else None,
                }
            )
    return found


def _feedback(feedback: Feedback) -> dict[str, Any]:
    return {
        "feedback_id": feedback.feedback_id,
        "kind": feedback.kind,
        "item_id": feedback.item_id,
        "value": feedback.value,
        "text": feedback.text,
        "at": iso(feedback.accepted_at_ms),
    }


def _example(placed: Placed[LlmExample]) -> dict[str, Any]:
    example = placed.message
    return {
        "example_id": example.example_id,
        "kind": ExampleKind.Name(example.kind).removeprefix("EXAMPLE_KIND_").lower(),
        "answer": example.answer,
        "score": example.score,
        "comment": example.comment,
        "feedback_id": example.feedback_id,
        "offset": placed.offset,
    }


def _letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "reason": letter.reason,
        "detail": letter.detail,
        "feedback_id": letter.feedback_id,
        "source": f"{letter.source_topic}[{letter.source_partition}]@{letter.source_offset}",
        "at": iso(letter.failed_at_ms),
    }


def _after(moment_ms: int, start_ms: int) -> int | None:
    return moment_ms - start_ms if moment_ms else None
