"""Recall by embedding: the items whose rows suit the user's row and history best, read from the mapped tables of this host.

Exact search over a copy of the catalogue's rows. It repeats the part of the first task's logit that is linear in the item's row
(services.common.ranker.networks.interface): scale * (user + mean of history) · item + the item's bias. The copy is renewed piece by
piece: each time the next `_ROWS_A_TURN` rows, and those of new items first. So a renewal costs the same for every size of the
catalogue; of a larger one a row may be a few turns old, and a search may meet one that is just being renewed. Neither matters much: the
ranker scores what was found from whole and present rows. Knows no storage format.

Shapes: M places (items, and room for more), L history items, D row dimension, C = D less the leading biases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
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

# Rows read in one look at the tables, which must not take longer than the pause between two deltas, and in one turn.
_ROWS_A_LOOK = 10_000
_ROWS_A_TURN = 50_000
_FEWEST_PLACES = 1_024
_ABSENT = np.float32(-np.inf)

_log = logging.getLogger(__name__)


class RowReader(Protocol):
    """What is used of services.common.ranker.tables.reader.ModelReader."""

    def read(self, ids: dict[str, Int64Array]) -> Any:
        """Return a view with `.rows` and `.found` per table."""

    def dense(self) -> Any:
        """Return a view with `.tensors` by name."""


class ItemKeys(Protocol):
    """The catalogue's items by the keys of the tables."""

    def item_id(self, key: int) -> str | None:
        """Return the item id of a key; None when the catalogue does not hold it."""

    def take_key_changes(self) -> Sequence[tuple[int, bool]]:
        """Return (key, whether its item is there now) of the items that came or went since the last call, in order."""


class ItemRows:
    """Copies of the items' rows. One thread changes them; any may search."""

    def __init__(self, num_reserved_dims: int) -> None:
        """`num_reserved_dims`: leading biases of a row, of which the first task's counts; the rest is what the dot product uses."""
        self._num_reserved_dims = num_reserved_dims
        self._place_of: dict[int, int] = {}
        self._free: list[int] = []
        # An item without a row has this bias, and is never found.
        self._keys_M = np.zeros(0, np.int64)
        self._is_taken_M = np.zeros(0, np.bool_)
        self._biases_M = np.zeros(0, np.float32)
        self._vectors_MC = np.zeros((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._place_of)

    def add(self, key: int) -> int:
        """Give an item a place, without a row as yet, and return it."""
        if key in self._place_of:
            return self._place_of[key]
        if not self._free:
            self._grow()
        place = self._place_of[key] = self._free.pop()
        self._keys_M[place], self._is_taken_M[place] = key, True
        return place

    def remove(self, key: int) -> None:
        """Take an item's place away."""
        place = self._place_of.pop(key, None)
        if place is not None:
            self._biases_M[place], self._is_taken_M[place] = _ABSENT, False
            self._free.append(place)

    def taken(self, first: int, count: int) -> Int64Array:
        """Return up to `count` places from `first` on, round the end; some may be free."""
        num_places = len(self._keys_M)
        return (first + np.arange(min(count, num_places))) % max(num_places, 1)

    def keys(self, places_N: Int64Array) -> Int64Array:
        """Return the keys at the places, int64 [N]."""
        keys_N: Int64Array = self._keys_M[places_N]
        return keys_N

    def renew(self, places_N: Int64Array, rows_ND: Float32Array, found_N: npt.NDArray[np.bool_]) -> None:
        """Set the rows at places [N], float32 [N, D]; an item that was not found, or a free place, has none."""
        num_columns = rows_ND.shape[1] - self._num_reserved_dims
        if self._vectors_MC.shape[1] != num_columns:
            self._vectors_MC = np.zeros((len(self._keys_M), num_columns), np.float32)
        self._vectors_MC[places_N] = rows_ND[:, self._num_reserved_dims :]
        self._biases_M[places_N] = np.where(found_N & self._is_taken_M[places_N], rows_ND[:, 0], _ABSENT)

    def best(self, query_C: Float32Array, scale: float, limit: int) -> list[int]:
        """Return the keys of up to `limit` items, best first."""
        keys_M, biases_M, vectors_MC = self._keys_M, self._biases_M, self._vectors_MC
        if not vectors_MC.size:
            return []
        num_places = min(len(keys_M), len(biases_M), len(vectors_MC))  # equal, but while they grow
        scores_M = vectors_MC[:num_places] @ (scale * query_C) + biases_M[:num_places]
        chosen = np.argpartition(-scores_M, limit)[:limit] if limit < num_places else np.arange(num_places)
        chosen = chosen[np.isfinite(scores_M[chosen])]
        best: list[int] = keys_M[chosen[np.argsort(-scores_M[chosen], kind="stable")]].tolist()
        return best

    def _grow(self) -> None:
        """Double the places: arrays are replaced whole, so a search goes on over those that it has."""
        before = len(self._keys_M)
        after = max(2 * before, _FEWEST_PLACES)
        vectors_MC = np.zeros((after, self._vectors_MC.shape[1]), np.float32)
        vectors_MC[:before] = self._vectors_MC
        self._vectors_MC = vectors_MC
        self._biases_M = np.concatenate([self._biases_M, np.full(after - before, _ABSENT, np.float32)])
        self._keys_M = np.concatenate([self._keys_M, np.zeros(after - before, np.int64)])
        self._is_taken_M = np.concatenate([self._is_taken_M, np.zeros(after - before, np.bool_)])
        self._free.extend(range(after - 1, before - 1, -1))


class EmbeddingRecall(NearestItems):
    """Meets `sources.NearestItems`."""

    def __init__(self, open_reader: Callable[[], RowReader], items: ItemKeys, *, num_reserved_dims: int, refresh_s: float) -> None:
        """Nothing is read before `run`.

        Args:
            open_reader: opens the mapped tables; raises TableNotReady while there are none.
            items: the catalogue's; others are not recalled.
            num_reserved_dims: leading dimensions of a row that are no part of the dot product.
            refresh_s: pause between two turns.
        """
        self._open_reader, self._items = open_reader, items
        self._num_reserved_dims, self._refresh_s = num_reserved_dims, refresh_s
        self._reader: RowReader | None = None
        self._rows = ItemRows(num_reserved_dims)
        self._scale = 1.0
        self._new: list[int] = []  # places that no row has been read for
        self._at = 0

    @override
    async def nearest(self, user_id: str, history: Sequence[str], limit: int) -> Sequence[str]:
        if self._reader is None:
            return []
        keys = await asyncio.to_thread(self._search, self._reader, user_id, history, limit)
        named = (self._items.item_id(key) for key in keys)
        return [item_id for item_id in named if item_id is not None]

    async def run(self) -> None:
        """Take turns for ever; cancel it to stop. While items have never been looked up, turns follow each other without a pause."""
        while True:
            all_read = await asyncio.to_thread(self.refresh)
            await asyncio.sleep(self._refresh_s if all_read else 0)

    def refresh(self) -> bool:
        """Take one turn: note which items came and went, and renew the next rows. Return false when more new items wait.

        Without tables the recall channel stays empty, and the ranker says so in every answer.
        """
        for key, is_there in self._items.take_key_changes():
            if is_there:
                self._new.append(self._rows.add(key))
            else:
                self._rows.remove(key)
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            self._scale = float(self._reader.dense().tensors["dot_scale"][0])
            self._renew(self._reader)
        except TableNotReady as error:
            _log.debug("no item embeddings yet: %s", error)
        except CorruptArtifact as error:
            _log.error("the item embeddings cannot be read, recall goes on without or with older ones: %s", error)
        else:
            return not self._new
        return True

    def _renew(self, reader: RowReader) -> None:
        new = self._new[:_ROWS_A_TURN]
        self._look_up(reader, np.asarray(new, np.int64))
        del self._new[: len(new)]
        count = _ROWS_A_TURN - len(new)
        places_N = self._rows.taken(self._at, count)
        self._look_up(reader, places_N)
        self._at += len(places_N)

    def _look_up(self, reader: RowReader, places_N: Int64Array) -> None:
        for start in range(0, len(places_N), _ROWS_A_LOOK):
            some = places_N[start : start + _ROWS_A_LOOK]
            view = reader.read({"item": self._rows.keys(some)})
            self._rows.renew(some, view.rows["item"], view.found["item"])

    def _search(self, reader: RowReader, user_id: str, history: Sequence[str], limit: int) -> list[int]:
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
        return self._rows.best(query_D[self._num_reserved_dims :], self._scale, limit)
