"""What each feature is worth to a learner: how much the log-loss on held-out exposures rises when its values are exchanged between them.

A column of the user is exchanged between exposures, a column of an item between all items of all exposures, the columns and keys of one
declared feature together. What two features say alike is worth little in either: the other one still says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.ranker import columns, exposure_block
from services.common.ranker.declared.encodings import Keys
from services.common.ranker.declared.entry_list import feature_of
from services.common.ranker.declared.plan import Scope
from services.common.ranker.declared.row_keys import KeyedRows, RowKeys
from services.common.ranker.declared.values import stretches
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.trainer.event_samples import NUM_OTHERS
from services.trainer.held_out.estimates import MIN_USERS
from services.trainer.learner import Learner
from services.trainer.passes import losses_of

Int64Array = npt.NDArray[np.int64]

_SCORED_GROUPS = 64
_DRAWS = 1_000
_KEY_BYTES, _COUNT_BYTES, _NUMBER_BYTES = 8, 2, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is exchanged at once.

    Attributes:
        name: of the built-in column or of the declared feature.
        is_declared: which of the two it is.
        is_of_user: whether an exposure has it once, or once an item.
        columns: places in Features.user_U or Features.items_NF.
        keyed: place among the keyed features of its side; None: it makes none.
        sequence: place among the sequences; None: it is none. A sequence is exchanged whole, with the candidates left as they are.
    """

    name: str
    is_declared: bool
    is_of_user: bool
    columns: tuple[int, ...] = ()
    keyed: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What became of the loss.

    Attributes:
        unit: what was exchanged.
        rise: of the log-loss an event, mean of the permutations.
        low, high: 95 % by a bootstrap of the users; None: there are too few of them.
        bytes_an_exposure: of 100 items, in the log and to the ranker.
    """

    unit: Unit
    rise: float
    low: float | None
    high: float | None
    bytes_an_exposure: float


def units_of(spec: FeatureSpec) -> list[Unit]:
    """Return the built-in columns, each by itself, and the declared features, each with all that it makes."""
    plan, found = spec.plan, list[Unit]()
    sequences = [one.name for one in plan.sequences]
    for is_of_user, names in ((True, columns.user_names()), (False, columns.item_names(spec.counters.half_lives_events))):
        found += [Unit(name=name, is_declared=False, is_of_user=is_of_user, columns=(at,)) for at, name in enumerate(names)]
    for name in (feature_of(one).feature_name for one in spec.features):
        if name in sequences:
            found.append(Unit(name=name, is_declared=True, is_of_user=True, sequence=sequences.index(name)))
            continue
        scope, table, made = plan.made_by(name)
        is_of_user = scope is Scope.EVENT
        of_side = spec.user_columns if is_of_user else spec.item_columns
        if table is not None:
            keyed = [one.name for one in (plan.user_keyed if is_of_user else plan.item_keyed)]
            found.append(Unit(name=name, is_declared=True, is_of_user=is_of_user, keyed=keyed.index(name)))
        elif made:
            places = tuple(of_side.index(column) for column in made)
            found.append(Unit(name=name, is_declared=True, is_of_user=is_of_user, columns=places))
    return found


class Exposures:
    """Held-out exposures, and their features side by side."""

    def __init__(self, spec: FeatureSpec, groups: Sequence[SampleGroup]) -> None:
        """groups: at least one."""
        self.spec, self.groups = spec, groups
        self._features = [exposure_block.decode(group.features_block, spec) for group in groups]
        self._ends_G = np.cumsum([len(one) for one in self._features])
        self._user_GU = np.stack([one.user_U for one in self._features])
        self._items_AF = np.concatenate([one.items_NF for one in self._features])
        keys = [one.keys for one in self._features if one.keys is not None]
        self._keys = KeyedRows.joined(keys) if keys else None

    def exchanged(self, unit: Unit, rng: np.random.Generator) -> Iterator[SampleGroup]:
        """Yield the groups with the values of one unit exchanged."""
        order = rng.permutation(len(self._user_GU) if unit.is_of_user else len(self._items_AF))
        user_GU, items_AF, keys = self._user_GU, self._items_AF, self._keys
        places = list(unit.columns)
        if unit.sequence is not None:
            assert keys is not None
            whole = keys.sequences[unit.sequence]
            others = replace(whole.taken(order, np.arange(0)), candidates=whole.candidates)
            keys = replace(keys, sequences=tuple(others if at == unit.sequence else one for at, one in enumerate(keys.sequences)))
        elif unit.keyed is not None:
            assert keys is not None
            side = _with_exchanged(keys.user if unit.is_of_user else keys.items, unit.keyed, order)
            keys = replace(keys, user=side) if unit.is_of_user else replace(keys, items=side)
        elif unit.is_of_user:
            user_GU = user_GU.copy()
            user_GU[:, places] = self._user_GU[order][:, places]
        else:
            items_AF = items_AF.copy()
            items_AF[:, places] = self._items_AF[order][:, places]
        for at, (group, own) in enumerate(zip(self.groups, self._features, strict=True)):
            rows = np.arange(self._ends_G[at] - len(own), self._ends_G[at])
            of_group = None if keys is None else keys.taken(np.asarray([at]), rows)
            yield _with_features(group, replace(own, user_U=user_GU[at], items_NF=items_AF[rows], keys=of_group))

    def bytes_of(self, unit: Unit) -> float:
        """Return how many bytes of an exposure of 100 items the unit takes."""
        times = 1 if unit.is_of_user else NUM_OTHERS + 1
        if unit.sequence is not None:
            assert self._keys is not None
            whole = self._keys.sequences[unit.sequence]
            # At most: a key that comes up again takes its place alone.
            events = len(whole.events.keys_S) / len(self.groups)
            candidates = len(whole.candidates.keys_S) / max(len(whole.candidates), 1) * (NUM_OTHERS + 1)
            return float((_KEY_BYTES + _COUNT_BYTES) * (events + candidates))
        if unit.keyed is None:
            return float(_NUMBER_BYTES * len(unit.columns) * times)
        assert self._keys is not None
        counts_NK = (self._keys.user if unit.is_of_user else self._keys.items).counts_NK
        return float((_COUNT_BYTES + _KEY_BYTES * counts_NK[:, unit.keyed].mean()) * times)


def _with_features(group: SampleGroup, features: Features) -> SampleGroup:
    changed = SampleGroup()
    changed.CopyFrom(group)
    changed.features_block = exposure_block.encode(features, group.schema_hash)
    return changed


def _with_exchanged(rows: RowKeys, feature: int, order: Int64Array) -> RowKeys:
    """Return the keys of all features, those of one in another order of rows."""
    starts_NK, found = rows.starts(), []
    for at in range(rows.counts_NK.shape[1]):
        starts_N, counts_N = starts_NK[:, at], rows.counts_NK[:, at]
        if at == feature:
            starts_N, counts_N = starts_N[order], counts_N[order]
        offsets = np.concatenate(([0], np.cumsum(counts_N)))
        # Tables and pooling are the plan's; only the keys are laid out here.
        found.append(Keys("", "", rows.keys_S[stretches(starts_N, counts_N)[0]].view(np.uint64), offsets))
    return RowKeys.of(found, len(rows))


def losses_by_group(spec: FeatureSpec, learner: Learner, groups: Iterator[SampleGroup] | Sequence[SampleGroup]) -> npt.NDArray[np.float64]:
    """Return the log-loss of each group by the present weights, scored some at a time."""
    every = list(groups)
    parts = [losses_of(spec, learner, every[start : start + _SCORED_GROUPS]) for start in range(0, len(every), _SCORED_GROUPS)]
    return np.concatenate(parts)


def worth_of(
    exposures: Exposures,
    learner: Learner,
    unit: Unit,
    before_G: npt.NDArray[np.float64],
    *,
    events_of: Mapping[str, int],
    permutations: int,
    seed: int,
) -> Worth:
    """Exchange the values of one unit several times; return by how much the loss rises.

    Args:
        exposures: held out from what the learner learned.
        learner: which learns nothing here.
        unit: of `units_of`.
        before_G: of `losses_by_group`, with nothing exchanged.
        events_of: by user the number of events that the exposures stand for, also those of which none was kept.
        permutations: how many.
        seed: of the permutations and of the bootstrap.
    """
    rises_G = np.zeros(len(before_G))
    for number in range(permutations):
        rng = np.random.default_rng((seed, number))
        rises_G += losses_by_group(exposures.spec, learner, exposures.exchanged(unit, rng)) - before_G
    rises_G /= permutations
    interval = interval_by_user([group.user_id for group in exposures.groups], rises_G, events_of, seed=seed)
    low, high = (None, None) if interval is None else interval
    rise = float(rises_G.sum()) / sum(events_of.values())
    return Worth(unit=unit, rise=rise, low=low, high=high, bytes_an_exposure=exposures.bytes_of(unit))


def interval_by_user(
    user_ids: Sequence[str], values_G: npt.NDArray[np.float64], events_of: Mapping[str, int], *, seed: int
) -> tuple[float, float] | None:
    """Return the 95 % interval of the sum of values over the number of events, by a percentile bootstrap that draws users with all theirs.

    Args:
        user_ids: of each value.
        values_G: float64 [values].
        events_of: by user the number of events; those without a value are among them.
        seed: of the draws.
    Returns:
        None of fewer users than MIN_USERS: one user drawn again and again has an interval of no width.
    """
    if len(events_of) < MIN_USERS:
        return None
    place_of = {user_id: place for place, user_id in enumerate(events_of)}
    users_G = np.fromiter((place_of[user_id] for user_id in user_ids), np.int64, len(user_ids))
    sums_U = np.bincount(users_G, weights=values_G, minlength=len(place_of))
    counts_U = np.fromiter(events_of.values(), np.int64, len(place_of))
    rng = np.random.default_rng((seed, len(sums_U)))
    means = []
    for _ in range(_DRAWS):
        drawn = rng.integers(len(sums_U), size=len(sums_U))
        means.append(sums_U[drawn].sum() / counts_U[drawn].sum())
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return low, high
