"""The trainer's embedding table: collision-free rows by 64-bit id, with optimizer state, admission, eviction and the set of changed ids.

Everything that it computes is a function of the calls made, in their order; no clock and no random stream is involved. A new row is drawn
from a hash of (table seed, id, column), so it does not matter in which order ids appear.

One micro-batch calls, in this order:

    table.advance(step)                          # the table's clock
    slots = table.count_and_find(ids, counts)    # counts of before de-duplication; creates the rows of admitted ids, -1 for others
    table.rows[slots] -= ...                     # the optimizer writes rows and accumulators in place
    table.mark_slots(slots)
    table.evict(step)                            # whenever the caller likes, at steps that depend on the data alone

Knows nothing of networks, gradients, files or Kafka. Not thread-safe: what it returns are copies, which another thread may use.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.tables.index import MISSING, Int64s, SlotIndex
from services.trainer.admission import Admission, Arrays, check_array, checked_ids, load_counter, make_counter
from services.trainer.initial_rows import fill_initial_rows

Float32s = NDArray[np.float32]

_log = logging.getLogger(__name__)

# Occurrences per row of max_rows after which frequencies are halved.
_SAMPLE_PER_ROW = 10
# A table may have this part of max_rows more, and the new ids of one step, between two evictions.
_SLACK_PART = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Which rows to give up. Each rule that is None is off."""

    steps_to_live: int | None = None
    """Evict ids not counted for more than this many steps."""
    l2_weight_threshold: float | None = None
    """Evict rows whose Euclidean norm is below this."""
    max_rows: int | None = None
    """Keep at most this many rows, and between two evictions an eighth more: those that occurred most often of late, of equal ones the
    most recent, of equal ones the lower id.

    Of late: frequencies are halved each time that 10 * max_rows occurrences were counted (Einziger et al. 2017, TinyLFU: the frequencies
    of a sample of ten times the size tell apart what is worth a place, and old fame fades).
    Measured on this code (max_rows 2,000, Zipf 0.9 over 40,000 ids, evicted every 1,000 of 200,000 occurrences; share of occurrences
    that met their row, mean of 4 draws, standard deviation 0.001; tests/unit/services/trainer/test_eviction.py repeats it in small):
                                                       this    recency alone   lifetime frequency
        steady                                         0.562       0.507             0.577
        other favourites every 20,000 occurrences      0.533       0.499             0.489
        every second occurrence an id of one           0.242       0.203             0.264
    """


@dataclass(frozen=True, slots=True)
class Touched:
    """What changed since the last acknowledged take; all copies.

    Attributes:
        token: hand it to `ack_touched` once the broker has everything.
        ids: int64 [U], ascending.
        rows: float32 [U, dim], in the order of ids.
        tombstones: int64 [V], ascending; ids that lost their row. Disjoint from ids.
    """

    token: int
    ids: Int64s
    rows: Float32s
    tombstones: Int64s


class TrainerTable:
    """One named table in ordinary memory.

    Attributes, all addressed by slot and replaced by larger ones when rows are created, so read them again after `slots_for_update`:
        rows: float32 [capacity, dim].
        accumulators: float32 [capacity, optimizer_slots, dim], e.g. Adagrad's sums of squares.
        frequency: int64 [capacity], occurrences counted; with `max_rows`, halved from time to time.
        last_step: int64 [capacity], step of the last occurrence or update.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        *,
        optimizer_slots: int = 1,
        admission: Admission | None = None,
        eviction: Eviction | None = None,
        init_scale: float = 0.01,
        default_value: float = 0.0,
        accumulator_init: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Make an empty table.

        Args:
            name: of the table, e.g. "user"; part of the names of its arrays and of the seed of its rows.
            dim: columns of a row, > 0.
            optimizer_slots: rows of optimizer state per row, >= 0.
            admission: when an id earns a row; by default at first sight.
            eviction: which rows `evict` gives up; by default none.
            init_scale: new rows are uniform in [-init_scale, init_scale).
            default_value: what every column of an unknown or un-admitted id reads (Monolith's default_value_no_permission).
            accumulator_init: initial value of the accumulators.
            seed: of the initial rows.
        Raises:
            ValueError: dim or optimizer_slots is out of range.
        """
        if dim <= 0 or optimizer_slots < 0:
            raise ValueError(f"table {name!r}: dim {dim} must be positive and optimizer_slots {optimizer_slots} not negative")
        self.name = name
        self.dim = dim
        self.step = 0
        self.optimizer_slots = optimizer_slots
        self.default_row: Float32s = np.full(dim, default_value, np.float32)
        self._admission = admission or Admission()
        self._eviction = eviction or Eviction()
        self._init_scale = init_scale
        self._accumulator_init = accumulator_init
        self._init_seed = np.uint64((seed & 0xFFFFFFFF) << 32 | zlib.crc32(name.encode()))
        self._index = SlotIndex()
        self._waiting = make_counter(self._admission)
        # The number of the next take, to which a change made now belongs.
        self._take = 1
        self._tombstones: dict[int, int] = {}
        # Occurrences counted since the frequencies were halved.
        self._since_halving = 0
        self._allocate(self._index.capacity)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._index)

    def advance(self, step: int) -> None:
        """Set the clock that `count`, `slots_for_update` and eviction use: micro-batches or event time, never wall time.

        Raises:
            ValueError: step is lower than before.
        """
        if step < self.step:
            raise ValueError(f"table {self.name!r}: step {step} is before {self.step}")
        self.step = step

    def count_and_find(self, ids: Int64s, counts: Int64s) -> Int64s:
        """Add `counts` [U] to the frequencies of ids [U] (distinct), of rows and of ids waiting for admission; return their slots.

        Rows of ids that are admitted by now are created; -1 for the others. An id that did not occur, but whose row will change, counts 0.
        In which order the ids stand makes no difference.
        """
        slots = self._index.find(ids)
        is_known = slots != MISSING
        self.frequency[slots[is_known]] += counts[is_known]
        self.last_step[slots[is_known]] = self.step
        unknown = np.flatnonzero(~is_known)
        unknown = unknown[np.argsort(ids[unknown])]
        occurred = unknown[counts[unknown] > 0]
        if occurred.size:
            self._waiting.add(ids[occurred], counts[occurred], self.step)
        self._age(int(counts.sum()))
        if unknown.size:
            waiting = self._waiting.get(ids[unknown])
            admitted = (waiting >= self._admission.filter_freq) | (self._admission.filter_freq <= 1)
            slots[unknown[admitted]] = self._create(ids[unknown[admitted]], waiting[admitted])
        return slots

    def mark_slots(self, slots: Int64s) -> None:
        """Remember that the rows in these slots [N] changed; -1 is none."""
        self._touched_in[slots[slots != MISSING]] = self._take

    def count(self, ids: Int64s) -> None:
        """Add the occurrences of ids [N], repeats included, to the frequencies of rows and of ids waiting for admission."""
        unique, counts = np.unique(ids, return_counts=True)
        slots = self._index.find(unique)
        known = slots != MISSING
        self.frequency[slots[known]] += counts[known]
        self.last_step[slots[known]] = self.step
        self._waiting.add(unique[~known], counts[~known], self.step)
        self._age(ids.size)

    def lookup(self, ids: Int64s) -> Float32s:
        """Return float32 [N, dim], a copy: the row of each of ids [N] (repeats allowed), the default row where there is none."""
        slots = self._index.find(np.ascontiguousarray(ids, np.int64))
        rows: Float32s = self.rows[slots]
        rows[slots == MISSING] = self.default_row
        return rows

    def slots_for_update(self, ids: Int64s) -> Int64s:
        """Return the slot of each of ids [U] (distinct) that `count` has counted; creates rows as `count_and_find` does."""
        ids = np.ascontiguousarray(ids, np.int64)
        return self.count_and_find(ids, np.zeros(ids.size, np.int64))

    def mark_touched(self, ids: Int64s) -> None:
        """Remember that the rows of ids [N] changed; ids without a row are ignored. Creation and eviction mark by themselves."""
        slots = self._index.find(np.ascontiguousarray(ids, np.int64))
        self._touched_in[slots[slots != MISSING]] = self._take

    def take_touched(self) -> Touched:
        """Return all that changed and was not acknowledged yet. Changes after this call belong to the next take."""
        slots = np.flatnonzero(self._touched_in)
        slots = slots[np.argsort(self._id_of[slots])]
        token = self._take
        self._take += 1
        return Touched(token, self._id_of[slots], self.rows[slots], self._pending_tombstones())

    def ack_touched(self, token: int) -> None:
        """Forget what the take with this token returned, save what changed again since. Call it once the broker has acknowledged."""
        self._touched_in[self._touched_in <= token] = 0
        self._tombstones = {id_: take for id_, take in self._tombstones.items() if take > token}

    @property
    def is_overfull(self) -> bool:
        """Whether there are so many rows beyond `max_rows` that they should be evicted now: an eighth, so that sorting them stays rare."""
        max_rows = self._eviction.max_rows
        return max_rows is not None and len(self) > max_rows + max_rows // _SLACK_PART

    def evict(self, step: int) -> Int64s:
        """Give up rows by the eviction rules as of `step`; return their ids, ascending. Each becomes a tombstone of the next take."""
        self.advance(step)
        rule = self._eviction
        if rule == Eviction():
            return np.empty(0, np.int64)
        ids, slots = self._index.entries()
        gone = np.zeros(ids.size, np.bool_)
        if rule.steps_to_live is not None:
            gone |= self.last_step[slots] < step - rule.steps_to_live
            self._waiting.expire(step - rule.steps_to_live)
        if rule.l2_weight_threshold is not None:
            gone |= np.linalg.norm(self.rows[slots].astype(np.float64), axis=1) < rule.l2_weight_threshold
        if rule.max_rows is not None and ids.size - np.count_nonzero(gone) > rule.max_rows:
            kept = np.flatnonzero(~gone)
            best_first = np.lexsort((ids[kept], -self.last_step[slots[kept]], -self.frequency[slots[kept]]))
            gone[kept[best_first[rule.max_rows :]]] = True
        evicted = ids[gone]
        self._remove(evicted)
        return evicted

    def ids(self) -> Int64s:
        """Return the ids that have rows, ascending."""
        return self._index.entries()[0]

    def slots_of(self, ids: Int64s) -> Int64s:
        """Return the slot of each of ids [N] (repeats allowed), -1 where there is no row. Creates nothing."""
        return self._index.find(np.ascontiguousarray(ids, np.int64))

    def state_arrays(self) -> Arrays:
        """Return copies of the whole state under names `table/<name>/...`, rows sorted by id: the slots' layout leaves no trace.

        A replica needs `ids`, `rows` and `default_row` of these; the rest continues training.
        """
        ids, slots = self._index.entries()
        state: Arrays = {
            "ids": ids,
            "rows": self.rows[slots],
            "default_row": self.default_row.copy(),
            "accumulators": self.accumulators[slots],
            "frequency": self.frequency[slots],
            "last_step": self.last_step[slots],
            "step": np.array([self.step], np.int64),
            "since_halving": np.array([self._since_halving], np.int64),
            "touched": self._touched_in[slots] > 0,
            "tombstones": self._pending_tombstones(),
        }
        state |= {f"waiting/{key}": array for key, array in self._waiting.state_arrays().items()}
        return {f"table/{self.name}/{key}": array for key, array in state.items()}

    def load_state_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace the whole state by what `state_arrays` returned; arrays of other names are ignored.

        Raises:
            CorruptArtifact: an array is missing, or has a shape that this table's configuration does not have.
        """
        prefix = f"table/{self.name}/"
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        try:
            self._load(own)
        except KeyError as error:
            raise CorruptArtifact(f"table {self.name!r}: the state has no array {prefix}{error.args[0]}") from error
        except (ValueError, IndexError) as error:
            raise CorruptArtifact(f"table {self.name!r}: the state does not fit this configuration: {error}") from error

    def content_hash(self) -> str:
        """Return a hash of all that was learned and counted, without what is yet to be published: that depends on the broker's timing."""
        digest = hashlib.blake2b(digest_size=16)
        publishing = {f"table/{self.name}/touched", f"table/{self.name}/tombstones"}
        for key, array in sorted(self.state_arrays().items()):
            if key not in publishing:
                digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _age(self, num_occurrences: int) -> None:
        """Halve the frequencies when so many more occurrences make the sample full."""
        if self._eviction.max_rows is None:
            return
        halvings, self._since_halving = divmod(self._since_halving + num_occurrences, _SAMPLE_PER_ROW * self._eviction.max_rows)
        if halvings:
            self.frequency >>= min(halvings, 63)

    def _allocate(self, capacity: int) -> None:
        self.rows: Float32s = np.zeros((capacity, self.dim), np.float32)
        self.accumulators: Float32s = np.zeros((capacity, self.optimizer_slots, self.dim), np.float32)
        self.frequency: Int64s = np.zeros(capacity, np.int64)
        self.last_step: Int64s = np.zeros(capacity, np.int64)
        # The take that will carry the row next, 0 when there is nothing to publish.
        self._touched_in: Int64s = np.zeros(capacity, np.int64)
        self._id_of: Int64s = np.zeros(capacity, np.int64)

    def _per_slot(self) -> list[NDArray[Any]]:
        return [self.rows, self.accumulators, self.frequency, self.last_step, self._touched_in, self._id_of]

    def _grow(self) -> None:
        """Make the arrays as long as the index needs them."""
        old = self._per_slot()
        if self._index.capacity == old[0].shape[0]:
            return
        self._allocate(self._index.capacity)
        for old_array, new_array in zip(old, self._per_slot(), strict=True):
            new_array[: old_array.shape[0]] = old_array

    def _create(self, ids: Int64s, counts: Int64s) -> Int64s:
        """Give ids [K], admitted and without rows, fresh rows; return their slots."""
        slots = self._index.insert(ids)
        self._grow()
        fill_initial_rows(self.rows, slots, ids, self._init_seed, self._init_scale)
        self.accumulators[slots] = self._accumulator_init
        self.frequency[slots] = counts
        self.last_step[slots] = self.step
        self._touched_in[slots] = self._take
        self._id_of[slots] = ids
        self._waiting.forget(ids)
        for id_ in ids.tolist():
            self._tombstones.pop(id_, None)
        return slots

    def _remove(self, ids: Int64s) -> None:
        """Free the rows of ids [K], all present, and leave nothing behind for the next id that gets their slots."""
        slots = self._index.remove(ids)
        self.rows[slots] = 0
        self.accumulators[slots] = 0
        self.frequency[slots] = 0
        self.last_step[slots] = 0
        self._touched_in[slots] = 0
        self._tombstones.update(dict.fromkeys(ids.tolist(), self._take))

    def _pending_tombstones(self) -> Int64s:
        return np.array(sorted(self._tombstones), np.int64)

    def _load(self, own: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace the state. Raises KeyError, ValueError or IndexError before anything is replaced by half."""
        ids = checked_ids(own, "ids")
        expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "rows": (np.float32, (ids.size, self.dim)),
            "default_row": (np.float32, (self.dim,)),
            "accumulators": (np.float32, (ids.size, self.optimizer_slots, self.dim)),
            "frequency": (np.int64, (ids.size,)),
            "last_step": (np.int64, (ids.size,)),
            "step": (np.int64, (1,)),
            "touched": (np.bool_, (ids.size,)),
        }
        for key, (dtype, shape) in expected.items():
            check_array(own, key, dtype, shape)
        # Of before 2026-12: never halved.
        since_halving = own.get("since_halving", np.zeros(1, np.int64))
        check_array({"since_halving": since_halving}, "since_halving", np.int64, (1,))
        tombstones = checked_ids(own, "tombstones").tolist()
        counted = {key.removeprefix("waiting/"): array for key, array in own.items() if key.startswith("waiting/")}
        waiting, lost = load_counter(self._admission, counted)
        if lost:
            _log.warning("table %r begins without %s", self.name, lost)
        self._index = SlotIndex()
        slots = self._index.insert(ids)
        self._allocate(self._index.capacity)
        self._waiting = waiting
        self.rows[slots] = own["rows"]
        self.default_row = np.array(own["default_row"], np.float32)
        self.accumulators[slots] = own["accumulators"]
        self.frequency[slots] = own["frequency"]
        self.last_step[slots] = own["last_step"]
        self._touched_in[slots] = np.where(own["touched"], self._take, 0)
        self._id_of[slots] = ids
        self._tombstones = dict.fromkeys(tombstones, self._take)
        self.step = int(own["step"].item())
        self._since_halving = int(since_halving.item())
