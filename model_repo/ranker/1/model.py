"""The ranker on Triton's Python backend: scores items for users from the mapped tables that the updater of this host keeps fresh.

A delta needs no reload: every request reads the rows as they are, and the dense weights when their version has changed.
Run by tritonserver (`--load-model ranker`), in the ml environment. Knows nothing about Kafka, Redis or where features come from.

Inputs:   USER_ID int64 [G], ITEM_IDS int64 [N] (table keys), FEATURES uint8 [M]: G blocks of services.common.ranker.exposure_block one
          behind the other, which together have N item rows. Most requests are of one user; several are those that the recommender merged.
          Request parameter `traceparent` (W3C): the callers' spans, G of them with commas between them; empty where there is none.
Outputs, those that the request names:
          SCORES float32 [N, T], probabilities in the spec's task order
          VERSION int64 [3]: epoch, oldest and newest delta seq of the rows
          WATERMARK_MS int64 [1]: every feedback accepted up to here is in the rows
          USER_ROW_CRC int64 [G]: crc32c of each user's float32 row
Errors:   UNAVAILABLE "ranker has no base yet" until the updater has applied one; INVALID_ARG for a block that does not fit.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from services.common.ranker.declared.row_keys import KeyedRows
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features, build_features
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import ByTorch, Precision, faster_precision, has_bf16, scoring_of
from services.common.ranker.pooling import Pool
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
    """One answer. scores_NT: float32 [N, T] of all groups; sizes_G: items of each; view: the rows that were used."""

    sizes_G: Sequence[int]
    scores_NT: npt.NDArray[np.float32]
    view: ModelView


_OUTPUTS: Mapping[str, Callable[[Scored], torch.Tensor]] = {
    "SCORES": lambda scored: torch.from_numpy(scored.scores_NT),
    "VERSION": lambda scored: torch.tensor([scored.view.epoch, scored.view.seq_min, scored.view.seq_max]),
    "WATERMARK_MS": lambda scored: torch.tensor([scored.view.watermark_ms]),
    "USER_ROW_CRC": lambda scored: torch.tensor([crc32c.crc32c(row_D.tobytes()) for row_D in scored.view.rows["user"]]),
}


class Scorer:
    """Scores with one model reader and one network. Not thread-safe."""

    def __init__(self, spec: FeatureSpec, reader: ModelReader) -> None:
        self._spec, self._reader = spec, reader
        self._scoring = scoring_of(spec, make_network(spec))
        self._loaded: DenseView | None = None

    def score(self, user_keys_G: Int64Array, item_keys_N: Int64Array, groups: Sequence[Features]) -> Scored:
        """Score items for users; a user's key names the row that is used, whoever's features these are.

        Args:
            user_keys_G: of each group.
            item_keys_N: of the items of all groups, one group behind the other.
            groups: their features, each of one item at least.
        Raises:
            Unavailable: the tables cannot be read now.
        """
        longest = self._spec.history.length
        histories = [features.history_keys_L[:longest] for features in groups]
        pool = self._pool(groups)
        wanted = {"user": user_keys_G, "item": np.concatenate([item_keys_N, *histories])}
        view = self._read(wanted if pool is None else {**wanted, **pool.ids})
        users_GD, rows_RD = view.rows["user"], view.rows["item"]
        pooled = None if pool is None else pool.pooled(view.rows)
        scores, item, entry = [], 0, len(item_keys_N)
        for at, (user_D, features, history_L) in enumerate(zip(users_GD, groups, histories, strict=True)):
            end = item + len(features)
            items_ND, history_LD = rows_RD[item:end], rows_RD[entry : entry + len(history_L)]
            own = None if pool is None or pooled is None else pool.of_request(pooled, at, slice(item, end))
            scores.append(self._scoring.score(features, user_D, items_ND, history_LD, own))
            item, entry = end, entry + len(history_L)
        return Scored(list(map(len, groups)), scores[0] if len(scores) == 1 else np.concatenate(scores), view)

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
        self.score(np.zeros(1, np.int64), np.arange(num_items, dtype=np.int64), [features])

    def _pool(self, groups: Sequence[Features]) -> Pool | None:
        """Return what the declared features of all groups read; None when the spec has none that make rows of tables."""
        keys = [features.keys for features in groups if features.keys is not None]
        return Pool(self._spec.plan, KeyedRows.joined(keys)) if keys else None

    def _read(self, ids: Mapping[str, Int64Array]) -> ModelView:
        """Return rows by table, and load the dense weights that were current all the while they were read."""
        dense = self._reader.dense()
        for _ in range(_MAX_READS):
            view = self._reader.read(ids)
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
        traceparents = str(json.loads(request.parameters() or "{}").get("traceparent", "")).split(",")
        with ExitStack() as entered:
            # One for each of the callers that were merged: each has its trace whole.
            named = [self._telemetry.span("triton.ranker", parent=parent, kind=SpanKind.SERVER) for parent in traceparents]
            spans = [entered.enter_context(span) for span in named]
            try:
                scored = self._score(request)
            except (Unavailable, CorruptArtifact) as error:
                code = pb_utils.TritonError.UNAVAILABLE if isinstance(error, Unavailable) else pb_utils.TritonError.INVALID_ARG
                for span in spans:
                    span.set_attribute("error", str(error))
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
            version = f"{scored.view.epoch}.{scored.view.seq_max}"
            for span, num_items in zip(spans, scored.sizes_G, strict=False):
                span.set_attribute("items", num_items)
                span.set_attribute("model_version", version)
        # Only what is asked for, which is everything unless the request names outputs: each is copied into shared memory, and out of it.
        # Through DLPack: the stub of this Triton release was built before numpy 2 and would read such arrays as empty.
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor.from_dlpack(name, _OUTPUTS[name](scored)) for name in request.requested_output_names()]
        )

    def _score(self, request: Any) -> Scored:
        scorer = self._opener.scorer
        if scorer is None:
            raise Unavailable(NOT_READY)
        user_keys_G, item_keys_N, blocks = (_input(request, name) for name in ("USER_ID", "ITEM_IDS", "FEATURES"))
        groups = exposure_block.decode_all(blocks.tobytes(), self._spec)
        if len(groups) != len(user_keys_G):
            raise CorruptArtifact(f"FEATURES has {len(groups)} blocks for {len(user_keys_G)} USER_ID; both must be the same")
        num_rows = sum(map(len, groups))
        if num_rows != len(item_keys_N) or not all(map(len, groups)):
            raise CorruptArtifact(f"FEATURES has {num_rows} item rows for {len(item_keys_N)} ITEM_IDS; both must be the same, and not 0")
        return scorer.score(user_keys_G, item_keys_N, groups)


def _input(request: Any, name: str) -> npt.NDArray[Any]:
    """Return an input tensor as an array; through DLPack, see `_answer`."""
    values: npt.NDArray[Any] = from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()).numpy()
    return values
