"""From records of the mesh's topics to what the core counts, and from its windows to quality.v1. Knows no broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tunemesh.events.v1.dead_letter_pb2 import DeadLetter
from tunemesh.events.v1.delta_pb2 import Delta, ReplicaStatus
from tunemesh.events.v1.quality_pb2 import QualityAlarm, QualityWindow

from services.common.events.envelope import MalformedRecord, parse_value
from services.common.events.exposure import Exposure
from services.common.events.feedback import check_answer
from services.common.events.generation import Generation
from services.common.events.topics import ALL, EXPOSURES, FEEDBACK, GENERATIONS, RANKER_DELTAS, REPLICAS
from services.common.events.wire.exposure import read_exposure
from services.common.events.wire.feedback import read_feedback
from services.common.events.wire.generation import read_generation
from services.common.platform.clock import wall_ms
from services.common.platform.errors import CorruptArtifact
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from streams.quality.core import GENERATE, RECOMMEND, Act, Generated, Quality, Recommended, Replica, Window

SOURCES: tuple[str, ...] = (
    EXPOSURES.name,
    FEEDBACK.name,
    GENERATIONS.name,
    RANKER_DELTAS.name,
    REPLICAS.name,
    *(topic.dlq for topic in ALL),
)
RECALLED = frozenset({EXPOSURES.name, GENERATIONS.name})
"""Topics whose earlier records are read again at the start, for the variant of the requests that feedback is about."""

_DEAD_LETTERS = frozenset(topic.dlq for topic in ALL)


def column_names(spec: FeatureSpec) -> dict[str, tuple[str, ...]]:
    """Return the names of the columns of each group of rows that the core hands to the drift."""
    return {
        "scores": ("scores",),
        "user": tuple(f"user.{name}" for name in spec.user_columns),
        "item": tuple(f"item.{name}" for name in spec.item_columns),
        "tokens": ("prompt_tokens", "completion_tokens"),
    }


class Taker:
    """Takes records into a Quality."""

    def __init__(self, quality: Quality, spec: FeatureSpec, *, now_ms: Callable[[], int] = wall_ms) -> None:
        """`spec` reads the features; `now_ms` is the wall clock.

        Attributes: `num_unreadable_features` counts exposures whose features are damaged or of another feature spec.
        """
        self._quality, self._spec, self._now_ms = quality, spec, now_ms
        self.num_unreadable_features = 0

    def take(self, record: Any, *, is_recalled: bool = False) -> None:
        """Take a kafka-python record of one of SOURCES in.

        Args:
            record: the record.
            is_recalled: it is from before the start: only the variant of its request is noted.
        Raises:
            MalformedRecord: it does not parse or breaks the contract. Its owner sets it aside; here it is only left out.
        """
        topic, value, headers = record.topic, record.value, record.headers
        if topic == EXPOSURES.name:
            self._exposure(read_exposure(value, headers, self._now_ms()), is_recalled)
        elif topic == GENERATIONS.name:
            self._generation(read_generation(value, headers, self._now_ms()), is_recalled)
        elif topic == REPLICAS.name:
            status = parse_value(value, headers, ReplicaStatus)
            self._quality.reported(status.replica_id, Replica(status.watermark_ms, status.reported_at_ms))
        elif not is_recalled:
            self._counted(topic, value, headers)

    def _counted(self, topic: str, value: bytes | None, headers: Any) -> None:
        if topic == FEEDBACK.name:
            feedback = read_feedback(value, headers, self._now_ms())
            if feedback.is_about_answer:
                check_answer(feedback, MalformedRecord)
            self._quality.acted(Act(request_id=feedback.request_id, item_id=feedback.item_id, kind=feedback.kind, value=feedback.value))
        elif topic == RANKER_DELTAS.name:
            delta = parse_value(value, headers, Delta)
            if delta.chunk_index == 0:
                self._quality.learned(delta.header.samples_trained, delta.header.gradient_norm)
        elif topic in _DEAD_LETTERS:
            letter = parse_value(value, headers, DeadLetter)
            self._quality.died(letter.source_topic, letter.reason)

    def _exposure(self, exposure: Exposure, is_recalled: bool) -> None:
        # Of "epoch.seq" the epoch: every delta is a version, and windows are not cut by each.
        version = exposure.model_version.partition(".")[0]
        if is_recalled:
            self._quality.remember(exposure.request_id, RECOMMEND, exposure.variant, version)
            return
        user_U, items_NF = self._features(exposure.features_block)
        self._quality.recommended(
            Recommended(
                request_id=exposure.request_id,
                variant=exposure.variant,
                model_version=version,
                is_degraded=bool(exposure.degraded_reason),
                scores=exposure.scores,
                user_U=user_U,
                items_NF=items_NF,
            )
        )

    def _features(self, block: bytes) -> tuple[Any, Any]:
        if not block:
            return None, None
        try:
            features = exposure_block.decode(block, self._spec)
        except CorruptArtifact:
            self.num_unreadable_features += 1
            return None, None
        return features.user_U.astype(np.float32), features.items_NF.astype(np.float32)

    def _generation(self, answer: Generation, is_recalled: bool) -> None:
        if is_recalled:
            self._quality.remember(answer.request_id, GENERATE, answer.variant, answer.model_version)
            return
        began = answer.first_token_at_ms > 0
        self._quality.generated(
            Generated(
                request_id=answer.request_id,
                variant=answer.variant,
                model_version=answer.model_version,
                is_degraded=bool(answer.degraded_reason),
                finish_reason=answer.finish_reason,
                ttft_ms=float(answer.first_token_at_ms - answer.started_at_ms) if began else None,
                generating_ms=float(answer.finished_at_ms - answer.first_token_at_ms) if began else None,
                prompt_tokens=answer.usage.prompt_tokens,
                completion_tokens=answer.usage.completion_tokens,
            )
        )


def to_message(window: Window) -> QualityWindow:
    """Return the record of quality.v1."""
    return QualityWindow(
        kind=window.key.kind,
        variant=window.key.variant,
        model_version=window.key.model_version,
        window_start_ms=window.start_ms,
        window_end_ms=window.end_ms,
        metrics=dict(window.metrics),
        alarms=[QualityAlarm(name=each.name, value=each.value, limit=each.limit, detail=each.detail) for each in window.alarms],
    )
