"""The ranker on Triton's Python backend: scores items for one user from the mapped tables that the updater of this host keeps fresh.

A delta needs no reload: every request reads the rows as they are, and the dense weights when their version has changed.
Run by tritonserver (`--load-model ranker`), in the ml environment. Knows nothing about Kafka, Redis or where features come from.

Inputs:   USER_ID int64 [1], ITEM_IDS int64 [N] (table keys), FEATURES uint8 [M] (services.common.ranker.exposure_block, N item rows).
          Request parameter `traceparent` (W3C): the caller's span.
Outputs, those that the request names:
          SCORES float32 [N, T], probabilities in the spec's task order
          VERSION int64 [3]: epoch, oldest and newest delta seq of the rows
          WATERMARK_MS int64 [1]: every feedback accepted up to here is in the rows
          USER_ROW_CRC int64 [1]: crc32c of the user's float32 row
Errors:   UNAVAILABLE "ranker has no base yet" until the updater has applied one; INVALID_ARG for a block that does not fit.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from opentelemetry.trace import SpanKind
from pydantic_settings import SettingsConfigDict
from torch.utils.dlpack import from_dlpack

from services.common.platform.errors import ConfigurationError, CorruptArtifact, Unavailable
from services.common.platform.settings import ArtifactSettings, BaseServiceSettings, FeatureSpecSettings, load_settings
from services.common.platform.telemetry import Telemetry, configure
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features, build_features
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import ByTorch, Precision, faster_precision, has_bf16, scoring_of
from services.common.ranker.states import GlobalState, merge_item_bytes
from services.common.ranker.tables.dense import DenseView
from services.common.ranker.tables.reader import ModelReader, ModelView, TableNotReady

Int64Array = npt.NDArray[np.int64]

NOT_READY = "ranker has no base yet"

_OPEN_RETRY_S = 0.5
_MAX_READS = 5
_WARM_UP_ITEMS = 100
_WARM_UP_RUNS = 3

_log = logging.getLogger(__name__)


class RankerSettings(BaseServiceSettings, FeatureSpecSettings, ArtifactSettings):
    """What the backend reads from tritonserver's environment: the shared variables only."""

    model_config = SettingsConfigDict(env_prefix="TUNEMESH_RANKER_")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One answer. scores_NT: float32 [N, T]; view: the rows that were used."""

    scores_NT: npt.NDArray[np.float32]
    view: ModelView


_OUTPUTS: Mapping[str, Callable[[Scored], torch.Tensor]] = {
    "SCORES": lambda scored: torch.from_numpy(scored.scores_NT),
    "VERSION": lambda scored: torch.tensor([scored.view.epoch, scored.view.seq_min, scored.view.seq_max]),
    "WATERMARK_MS": lambda scored: torch.tensor([scored.view.watermark_ms]),
    "USER_ROW_CRC": lambda scored: torch.tensor([crc32c.crc32c(scored.view.rows["user"].tobytes())]),
}


class Scorer:
    """Scores with one model reader and one network. Not thread-safe."""

    def __init__(self, spec: FeatureSpec, reader: ModelReader) -> None:
        self._spec, self._reader = spec, reader
        self._scoring = scoring_of(spec, make_network(spec))
        self._loaded: DenseView | None = None

    def score(self, user_key: int, item_keys_N: Int64Array, features: Features) -> Scored:
        """Score items for a user; `user_key` names the row that is used, whoever's features these are.

        Raises:
            Unavailable: the tables cannot be read now.
        """
        num_items, history_keys_L = len(item_keys_N), features.history_keys_L[: self._spec.history.length]
        view = self._read(np.asarray([user_key], np.int64), np.concatenate([item_keys_N, history_keys_L]))
        items_RD = view.rows["item"]
        return Scored(self._scoring.score(features, view.rows["user"][0], items_RD[:num_items], items_RD[num_items:]), view)

    def warm_up(self) -> None:
        """Score nobody's items a few times, so that the first request does not pay for lazy initialisation; choose the faster precision."""
        for _ in range(_WARM_UP_RUNS):
            self._score_nobodys(_WARM_UP_ITEMS)
        scoring = self._scoring
        if isinstance(scoring, ByTorch) and has_bf16():

            def run(precision: Precision, num_items: int) -> None:
                scoring.precision = precision
                self._score_nobodys(num_items)

            scoring.precision = faster_precision(run, time.perf_counter)
            _log.info("this CPU has bf16 instructions; measured: scoring in %s", scoring.precision)

    def _score_nobodys(self, num_items: int) -> None:
        nothing = merge_item_bytes(self._spec, [[None] * num_items], [None])
        features = build_features(self._spec, "0", None, nothing, [()] * num_items, GlobalState())
        self.score(0, np.arange(num_items, dtype=np.int64), features)

    def _read(self, user_keys: Int64Array, item_keys: Int64Array) -> ModelView:
        """Return rows, and load the dense weights that were current all the while they were read."""
        dense = self._reader.dense()
        for _ in range(_MAX_READS):
            view = self._reader.read({"user": user_keys, "item": item_keys})
            before, dense = dense, self._reader.dense()
            if dense is before:
                if dense is not self._loaded:
                    self._scoring.load(dense.tensors)
                    self._loaded = dense
                return view
        raise Unavailable("the dense weights change faster than a request can be read")


class ScorerOpener:
    """Waits in a thread for the updater's first base, opens and warms up a scorer, and ends."""

    def __init__(self, spec: FeatureSpec, settings: RankerSettings) -> None:
        self._spec, self._settings = spec, settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scorer-opener", daemon=True)
        self.scorer: Scorer | None = None
        """Set once, when it is warm."""

    def start(self) -> None:
        """Start waiting."""
        self._thread.start()

    def stop(self) -> None:
        """Stop waiting."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                scorer = Scorer(self._spec, ModelReader(self._settings.tables_dir, self._spec.schema_hash))
                scorer.warm_up()
            except (Unavailable, CorruptArtifact) as error:
                level = logging.INFO if isinstance(error, TableNotReady) else logging.ERROR
                if str(error) != said:
                    said = str(error)
                    _log.log(level, "not ready: %s", said)
                self._stop.wait(_OPEN_RETRY_S)
                continue
            self.scorer = scorer
            _log.info("ready")
            return


class TritonPythonModel:
    """What Triton calls; one instance per process, one call at a time."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton's signature
        """Read settings and spec; the tables are opened in the background, since the model must load before the first base exists."""
        # One instance per core scales better than one request on several, and the trainer wants a core too.
        torch.set_num_threads(1)
        try:
            settings = load_settings(RankerSettings)
            self._spec = FeatureSpec.load(settings.feature_spec_path)
            make_network(self._spec)  # a network of one's own that cannot be made is said now, and not when the first base comes
            self._telemetry: Telemetry = configure("triton", settings)
        except ConfigurationError as error:
            raise pb_utils.TritonModelException(f"configuration error: {error}") from error
        self._opener = ScorerOpener(self._spec, settings)
        self._opener.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, or give it an error of its own."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Flush telemetry."""
        self._opener.stop()
        self._telemetry.shutdown()

    def _answer(self, request: Any) -> Any:
        parameters = json.loads(request.parameters() or "{}")
        with self._telemetry.span("triton.ranker", parent=parameters.get("traceparent"), kind=SpanKind.SERVER) as span:
            try:
                scored = self._score(request)
            except (Unavailable, CorruptArtifact) as error:
                code = pb_utils.TritonError.UNAVAILABLE if isinstance(error, Unavailable) else pb_utils.TritonError.INVALID_ARG
                span.set_attribute("error", str(error))
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
            view = scored.view
            span.set_attribute("items", len(scored.scores_NT))
            span.set_attribute("model_version", f"{view.epoch}.{view.seq_max}")
        # Only what is asked for, which is everything unless the request names outputs: each is copied into shared memory, and out of it.
        # Through DLPack: the stub of this Triton release was built before numpy 2 and would read such arrays as empty.
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor.from_dlpack(name, _OUTPUTS[name](scored)) for name in request.requested_output_names()]
        )

    def _score(self, request: Any) -> Scored:
        scorer = self._opener.scorer
        if scorer is None:
            raise Unavailable(NOT_READY)
        user_id, item_keys_N, block = (_input(request, name) for name in ("USER_ID", "ITEM_IDS", "FEATURES"))
        features = exposure_block.decode(block.tobytes(), self._spec)
        if len(features) != len(item_keys_N) or not len(item_keys_N):
            raise CorruptArtifact(
                f"FEATURES has {len(features)} item rows for {len(item_keys_N)} ITEM_IDS; both must be the same, and not 0"
            )
        return scorer.score(int(user_id[0]), item_keys_N, features)


def _input(request: Any, name: str) -> npt.NDArray[Any]:
    """Return an input tensor as an array; through DLPack, see `_answer`."""
    values: npt.NDArray[Any] = from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()).numpy()
    return values
