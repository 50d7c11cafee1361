"""Recall by embedding: the items whose rows suit the user's row and history best, read from the mapped tables of this host.

Exact search over a snapshot that is renewed every few seconds. It repeats the part of the first task's logit that is linear in the
item's row (services.common.ranker.network): scale * (user + mean of history) · item + the item's bias. Knows no storage format.
Shapes: M items, L history items, D row dimension, C = D less the leading biases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import entity_key
from services.common.ranker.tables.reader import TableNotReady
from services.recommender.sources import NearestItems

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)


class RowReader(Protocol):
    """What is used of services.common.ranker.tables.reader.ModelReader."""

    def read(self, ids: dict[str, Int64Array]) -> Any:
        """Return a view with `.rows` and `.found` per table."""

    def dense(self) -> Any:
        """Return a view with `.tensors` by name."""

    def iter_rows(self, table: str) -> tuple[Int64Array, Float32Array]:
        """Return all ids and rows of a table."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Item rows at one moment."""

    keys_M: Int64Array
    vectors_MC: Float32Array
    biases_M: Float32Array
    scale: float
    """The network's factor of the dot product for the first task."""

    @classmethod
    def of_rows(cls, keys_M: Int64Array, rows_MD: Float32Array, *, num_reserved_dims: int, scale: float) -> Snapshot:
        """Split rows into their leading biases, of which the first task's counts, and the part that the dot product uses."""
        return cls(keys_M, np.ascontiguousarray(rows_MD[:, num_reserved_dims:]), np.ascontiguousarray(rows_MD[:, 0]), scale)

    def best(self, query_C: Float32Array, limit: int) -> Int64Array:
        """Return the keys of up to `limit` items, best first."""
        scores_M = self.vectors_MC @ (self.scale * query_C) + self.biases_M
        chosen = np.argpartition(-scores_M, limit)[:limit] if limit < len(scores_M) else np.arange(len(scores_M))
        return self.keys_M[chosen[np.argsort(-scores_M[chosen], kind="stable")]]


class EmbeddingRecall(NearestItems):
    """Meets `sources.NearestItems`."""

    def __init__(
        self,
        open_reader: Callable[[], RowReader],
        item_id_of: Callable[[int], str | None],
        *,
        num_reserved_dims: int,
        refresh_s: float,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            open_reader: opens the mapped tables; raises TableNotReady while there are none.
            item_id_of: the catalogue's item id of a table key; None for items that it does not hold: they are not recalled.
            num_reserved_dims: leading dimensions of a row that are no part of the dot product.
            refresh_s: pause between two snapshots.
        """
        self._open_reader, self._item_id_of = open_reader, item_id_of
        self._num_reserved_dims, self._refresh_s = num_reserved_dims, refresh_s
        self._reader: RowReader | None = None
        self._snapshot: Snapshot | None = None

    @override
    async def nearest(self, user_id: str, history: Sequence[str], limit: int) -> Sequence[str]:
        if self._reader is None or self._snapshot is None:
            return []
        keys = await asyncio.to_thread(self._search, self._reader, self._snapshot, user_id, history, limit)
        named = (self._item_id_of(key) for key in keys)
        return [item_id for item_id in named if item_id is not None]

    async def run(self) -> None:
        """Renew the snapshot for ever; cancel it to stop."""
        while True:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(self._refresh_s)

    def refresh(self) -> None:
        """Read all item rows now. Without tables the recall channel stays empty, and the ranker says so in every answer."""
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            scale = float(self._reader.dense().tensors["dot_scale"][0])
            keys_M, rows_MD = self._reader.iter_rows("item")
            self._snapshot = Snapshot.of_rows(keys_M, rows_MD, num_reserved_dims=self._num_reserved_dims, scale=scale)
        except TableNotReady as error:
            _log.debug("no item embeddings yet: %s", error)
        except CorruptArtifact as error:
            _log.error("the item embeddings cannot be read, recall goes on without or with older ones: %s", error)

    def _search(self, reader: RowReader, snapshot: Snapshot, user_id: str, history: Sequence[str], limit: int) -> list[int]:
        ids = {
            "user": np.array([entity_key(user_id)], dtype=np.int64),
            "item": np.array([entity_key(item_id) for item_id in history], dtype=np.int64),
        }
        try:
            view = reader.read(ids)
        except TableNotReady:
            return []
        if not view.found["user"][0] and not view.found["item"].any():
            return []
        query_D = view.rows["user"][0]
        if history:
            query_D = query_D + view.rows["item"].mean(axis=0)
        best: list[int] = snapshot.best(query_D[self._num_reserved_dims :], limit).tolist()
        return best
