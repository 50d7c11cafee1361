"""A replica that follows bases and deltas in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunemesh.events.v1.delta_pb2 import BasePointer, Delta

from services.common.ranker.delta import DeltaBody
from services.common.ranker.delta_chunks import Reassembler


@dataclass
class Follower:
    """A replica: applies bases and deltas in the order in which they were written, by the rules of epochs and sequence numbers."""

    read_base: Callable[[BasePointer], Mapping[str, NDArray[Any]]]
    epoch: int = 0
    seq: int = -1
    base_id: str = ""
    rows: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    dense: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    watermark_ms: int = 0
    _reassembler: Reassembler = field(default_factory=Reassembler)

    def see_base(self, pointer: BasePointer) -> None:
        if pointer.epoch > self.epoch:
            self.load(pointer)
        elif pointer.epoch == self.epoch:
            assert pointer.seq <= self.seq
            self.base_id = pointer.base_id

    def load(self, pointer: BasePointer) -> None:
        arrays = self.read_base(pointer)
        self.epoch, self.seq, self.base_id = pointer.epoch, pointer.seq, pointer.base_id
        for name in _tables(arrays):
            ids, rows = arrays[f"table/{name}/ids"], arrays[f"table/{name}/rows"]
            self.rows[name] = dict(zip(ids.tolist(), rows, strict=True))
        self.dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}

    def see_delta(self, record: Delta) -> None:
        complete = self._reassembler.add(record)
        if complete is None:
            return
        header = complete.header
        if header.epoch < self.epoch or (header.epoch == self.epoch and header.seq <= self.seq):
            return
        if header.epoch > self.epoch:
            assert header.base_id == self.base_id, f"epoch {header.epoch} continues {header.base_id}, this replica has {self.base_id}"
            assert header.prev_seq == -1
            assert header.continues_epoch < self.epoch or header.continues_seq <= self.seq
        else:
            assert header.prev_seq == self.seq, f"gap: {header.epoch}.{header.seq} follows {header.prev_seq}, this replica has {self.seq}"
        self.epoch, self.seq, self.watermark_ms = header.epoch, header.seq, header.watermark_ms
        self.apply(complete.decode())

    def apply(self, body: DeltaBody) -> None:
        for name, table in body.tables.items():
            mine = self.rows.setdefault(name, {})
            mine.update(zip(table.ids.tolist(), table.rows, strict=True))
            for id_ in table.tombstones.tolist():
                mine.pop(id_, None)
        if body.dense is not None:
            self.dense = dict(body.dense)

    def content_hash(self) -> str:
        """The same for equal rows and weights, whatever the way there."""
        digest = hashlib.sha256()
        for name in sorted(self.rows):
            for id_ in sorted(self.rows[name]):
                digest.update(name.encode() + id_.to_bytes(8, "big", signed=True) + self.rows[name][id_].tobytes())
        for name in sorted(self.dense):
            digest.update(name.encode() + self.dense[name].tobytes())
        return digest.hexdigest()

    def equals(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether rows and dense weights are those of a learner's state, bit for bit."""
        for name in _tables(arrays):
            ids, mine = arrays[f"table/{name}/ids"].tolist(), self.rows.get(name, {})
            if sorted(mine) != ids or not all((mine[id_] == row).all() for id_, row in zip(ids, arrays[f"table/{name}/rows"], strict=True)):
                return False
        dense = {name.removeprefix("dense/"): array for name, array in arrays.items() if name.startswith("dense/")}
        return dense.keys() == self.dense.keys() and all((array == self.dense[name]).all() for name, array in dense.items())


def _tables(arrays: Mapping[str, NDArray[Any]]) -> set[str]:
    return {name.split("/")[1] for name in arrays if name.startswith("table/")}
