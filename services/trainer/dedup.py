"""The window of sample ids that were learned already: what makes a joiner's repetition harmless.

A joiner that crashed reads its open requests again and repeats their samples under the same ids. How far back that reaches, the logs say:
each group names the offset of its exposure, and each tick the offset below which every exposure is done. So an id is remembered until its
exposure is done, whatever the rate and the horizon, and a sample of an exposure that was done before it came is a repetition, known by its
offset alone. `min_ids` are remembered beyond that: for an exposure that stands in the log twice, minutes apart, and for groups without an
offset, of joiners before there was one.

The window never forgets silently what may still be repeated. When it would hold more than `max_ids` it forgets the oldest, and from then on
refuses samples of exposures as old as those unless it knows them: it can no longer tell new ones from repetitions. `take_refused` says so.

Its content is a function of the sample logs alone: of the samples in the order in which they were learned. About 120 bytes an id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.ranker.tables.index import MISSING, SlotIndex

SampleIds = NDArray[np.uint64]
Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_OFFSET = -1
_IDS, _OFFSETS, _PARTITIONS, _FLOORS = "dedup/sample_ids", "dedup/exposure_offsets", "dedup/partitions", "dedup/floors"
_NAMES = (_IDS, _OFFSETS, _PARTITIONS, _FLOORS)
# Ids whose partition is not known, of checkpoints from before there was one. They go first.
_UNPLACED = -1
_FIRST_ROOM = 1024
_LOOK_AHEAD = 256


@dataclass(slots=True)
class _Queue:
    """The ids of one partition in the order in which they were learned, with the offsets of their exposures.

    Attributes:
        done: exposures below this offset are done, as far as this window was told.
        forgotten: exposures below this offset have ids that were forgotten although they may be repeated.
    """

    done: int = 0
    forgotten: int = 0
    start: int = 0
    end: int = 0
    ids: Int64s = field(default_factory=lambda: np.empty(_FIRST_ROOM, np.int64))
    offsets: Int64s = field(default_factory=lambda: np.empty(_FIRST_ROOM, np.int64))

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, ids: Int64s, offset: int | Int64s) -> None:
        if self.end + ids.size > len(self.ids):
            self._make_room(ids.size)
        self.ids[self.end : self.end + ids.size] = ids
        self.offsets[self.end : self.end + ids.size] = offset
        self.end += ids.size

    def _make_room(self, count: int) -> None:
        """Move what is live to the front of arrays of twice its size."""
        size = max(2 * (len(self) + count), _FIRST_ROOM)
        for name in ("ids", "offsets"):
            moved = np.empty(size, np.int64)
            moved[: len(self)] = getattr(self, name)[self.start : self.end]
            setattr(self, name, moved)
        self.start, self.end = 0, len(self)

    def live(self) -> tuple[Int64s, Int64s]:
        """Return the ids and their offsets, oldest first."""
        return self.ids[self.start : self.end], self.offsets[self.start : self.end]

    def take_done(self, at_most: int) -> Int64s:
        """Remove and return the oldest ids, up to the first that may still be repeated."""
        first = self.start
        while (count := min(at_most - (self.start - first), len(self), _LOOK_AHEAD)) > 0:
            may_be_repeated = self.offsets[self.start : self.start + count] >= self.done
            num_done = int(may_be_repeated.argmax()) if may_be_repeated.any() else count
            self.start += num_done
            if num_done < count:
                break
        return self.ids[first : self.start]

    def take_oldest(self, count: int) -> Int64s:
        """Remove and return the oldest `count` ids, though some may still be repeated."""
        first, self.start = self.start, self.start + min(count, len(self))
        if self.start > first:
            self.forgotten = max(self.forgotten, int(self.offsets[first : self.start].max()) + 1)
        return self.ids[first : self.start]

    def forget_offsets(self) -> None:
        """The exposures' offsets begin anew: those that are known say nothing about the new ones."""
        self.offsets[self.start : self.end] = NO_OFFSET
        self.forgotten = 0


class DedupWindow:
    """Remembers the sample ids that a joiner may repeat, and at least the last `min_ids`. Not thread-safe."""

    def __init__(self, min_ids: int, max_ids: int) -> None:
        """Nothing is known yet; 1 <= min_ids <= max_ids."""
        if not 1 <= min_ids <= max_ids:
            raise ValueError(f"a window of {min_ids} to {max_ids} sample ids: the first must be at least 1, the second no less than it")
        self._min_ids, self._max_ids = min_ids, max_ids
        self._queues: dict[int, _Queue] = {}
        self._known = SlotIndex()
        self._num_refused = 0

    def __len__(self) -> int:
        return len(self._known)

    def add(self, sample_ids: SampleIds, *, partition: int = 0, exposure_offset: int = NO_OFFSET, exposures_done: int = 0) -> Bools:
        """Remember the ids of one group, [N]; return bool [N], true where a sample is to be learned.

        False where an id is known (the second of two equal ids in one call is), and everywhere when the exposure was done before, or is so
        old that the window cannot tell; see `take_refused`.

        Args:
            sample_ids: of the group.
            partition: of samples.v1, where the group stands.
            exposure_offset: of the group's exposure, in the same partition of exposures.v1; NO_OFFSET: not known.
            exposures_done: of the ticks before the group: exposures below this offset were done by then. A lower one than before means
                that exposures.v1 began anew, or that the caller does: see services.trainer.merge.
        """
        queue = self._queues.setdefault(partition, _Queue())
        if exposures_done < queue.done:
            queue.forget_offsets()
        queue.done = exposures_done
        ids = sample_ids.view(np.int64)
        if exposure_offset != NO_OFFSET and exposure_offset < exposures_done:
            return np.zeros(ids.size, np.bool_)
        is_new: Bools = self._known.find(ids) == MISSING
        if len(set(ids.tolist())) < ids.size:
            is_first = np.zeros(ids.size, np.bool_)
            is_first[np.unique(ids, return_index=True)[1]] = True
            is_new &= is_first
        if exposure_offset != NO_OFFSET and exposure_offset < queue.forgotten:
            self._num_refused += int(is_new.sum())
            return np.zeros(ids.size, np.bool_)
        fresh = ids[is_new]
        queue.append(fresh, exposure_offset)
        self._known.insert(fresh)
        self._forget_done(queue)
        self._keep_bound()
        return is_new

    def take_refused(self) -> int:
        """Return how many samples were refused since the last call, because the window is too small for how far joiners go back."""
        refused, self._num_refused = self._num_refused, 0
        return refused

    def _forget_done(self, queue: _Queue) -> None:
        unplaced = self._queues.get(_UNPLACED)
        for each in (unplaced, queue):
            if each is not None and len(self) > self._min_ids:
                self._known.remove(each.take_done(len(self) - self._min_ids))

    def _keep_bound(self) -> None:
        while len(self) > self._max_ids:
            # Whichever holds most; of equal ones the lowest partition, so that a restored window takes the same.
            _, largest = max(self._queues.items(), key=lambda named: (len(named[1]), -named[0]))
            excess = len(self) - self._max_ids
            done = largest.take_done(excess)
            self._known.remove(done if done.size else largest.take_oldest(excess))

    def copy(self) -> DedupWindow:
        """Return a window that knows the same and goes its own way."""
        return self.from_arrays(self.to_arrays(), self._min_ids, self._max_ids)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return copies of the whole state, N ids of P partitions: ids uint64 [N], their exposures' offsets and partitions int64 [N], and
        int64 [P, 3] of partition, `done` and `forgotten`."""
        live = [queue.live() for queue in self._queues.values()]
        lengths = np.array([len(queue) for queue in self._queues.values()], np.int64)
        none = np.empty(0, np.int64)
        return {
            _IDS: np.concatenate([ids for ids, _ in live] or [none]).view(np.uint64),
            _OFFSETS: np.concatenate([offsets for _, offsets in live] or [none]),
            _PARTITIONS: np.repeat(np.array(list(self._queues), np.int64), lengths),
            _FLOORS: np.array([(name, queue.done, queue.forgotten) for name, queue in self._queues.items()], np.int64).reshape(-1, 3),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], min_ids: int, max_ids: int) -> DedupWindow:
        """Return the window that `to_arrays` described; ids beyond `max_ids` are forgotten as always.

        Raises:
            ValueError: the arrays describe none.
        """
        ids, offsets, partitions, floors = checked(arrays)
        window = cls(min_ids, max_ids)
        for name, done, forgotten in floors.tolist():
            window._queues[name] = _Queue(done, forgotten)
        for name in np.unique(partitions).tolist():
            queue = window._queues.setdefault(name, _Queue())
            queue.append(ids[partitions == name], offsets[partitions == name])
        window._known.insert(ids)
        # What is done goes when its partition's next samples come, as it would have without a restart.
        window._keep_bound()
        return window


def take_arrays(arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Remove from `arrays` what describes a window, and return it.

    Raises:
        KeyError: there are no ids.
        ValueError: the arrays describe no window.
    """
    found = {name: arrays.pop(name) for name in _NAMES if name in arrays}
    checked(found)
    return found


def checked(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Return ids, offsets, partitions [N] and floors [P, 3], all int64; ids that stand alone are of no partition.

    Raises:
        KeyError: there are no ids.
        ValueError: an array does not fit.
    """
    stored = arrays[_IDS]
    if stored.dtype != np.uint64 or stored.ndim != 1:
        raise ValueError(f"{_IDS} is {stored.dtype} {stored.shape}, not uint64 [N]")
    ids = stored.view(np.int64)
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{_IDS} holds an id twice")
    defaults = {
        _OFFSETS: np.full(len(ids), NO_OFFSET, np.int64),
        _PARTITIONS: np.full(len(ids), _UNPLACED, np.int64),
        _FLOORS: np.empty((0, 3), np.int64),
    }
    others = [arrays.get(name, default) for name, default in defaults.items()]
    for (name, default), other in zip(defaults.items(), others, strict=True):
        if other.dtype != np.int64 or other.ndim != default.ndim or other.shape[default.ndim - 1] != default.shape[-1]:
            raise ValueError(f"{name} is {other.dtype} {other.shape}, which does not fit {len(ids)} ids")
    offsets, partitions, floors = (other.view(np.int64) for other in others)
    if len(np.unique(floors[:, 0])) != len(floors):
        raise ValueError(f"{_FLOORS} names a partition twice")
    return ids, offsets, partitions, floors
