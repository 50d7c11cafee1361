"""The window of sample ids that were learned already: what makes a joiner's repetition harmless.

A joiner that crashed reads its un-retired records again and repeats their samples under the same ids. The window holds the last
`capacity` ids in the order in which they were learned, so its content is a function of the sample logs alone. It counts ids, not
time: a joiner that was down for an hour still repeats what it emitted before. Its memory is about 50 bytes an id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.common.ranker.tables.index import MISSING, SlotIndex

SampleIds = NDArray[np.uint64]


class DedupWindow:
    """Remembers the last `capacity` sample ids."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._ring = np.zeros(capacity, np.int64)
        self._num_added = 0
        self._known = SlotIndex()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, sample_ids: SampleIds) -> NDArray[np.bool_]:
        """Remember sample_ids [N]; return bool [N], true where an id was new (the second of two equal ids in one call is not).

        The answer depends on what was added before, not on how it was cut into calls, as long as N <= capacity.

        Raises:
            ValueError: N > capacity.
        """
        ids = sample_ids.view(np.int64)
        if ids.size > self._capacity:
            raise ValueError(f"{ids.size} sample ids at once do not fit the window of {self._capacity}")
        is_first = np.zeros(ids.size, np.bool_)
        is_first[np.unique(ids, return_index=True)[1]] = True
        is_new: NDArray[np.bool_] = is_first & (self._known.find(ids) == MISSING)
        self._remember(ids[is_new])
        return is_new

    def _remember(self, ids: NDArray[np.int64]) -> None:
        places = (self._num_added + np.arange(ids.size)) % self._capacity
        num_forgotten = max(len(self._known) + ids.size - self._capacity, 0)
        self._known.remove(self._oldest(num_forgotten))
        self._ring[places] = ids
        self._known.insert(ids)
        self._num_added += ids.size

    def _oldest(self, count: int) -> NDArray[np.int64]:
        first = self._num_added - len(self._known)
        return self._ring[(first + np.arange(count)) % self._capacity]

    def copy(self) -> DedupWindow:
        """Return a window that knows the same ids and goes its own way."""
        return self.from_array(self.to_array(), self._capacity)

    def to_array(self) -> SampleIds:
        """Return a copy of the ids, oldest first: uint64 [len(self)]."""
        return self._oldest(len(self)).view(np.uint64)

    @classmethod
    def from_array(cls, sample_ids: SampleIds, capacity: int) -> DedupWindow:
        """Return the window that `to_array` described; of more than `capacity` ids, the newest are kept."""
        window = cls(capacity)
        window.add(sample_ids[-capacity:])
        return window
