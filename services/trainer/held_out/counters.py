"""What counting alone achieves: the baselines that a network must beat. Up to date at once, while the network learns in steps. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import labels_of_row
from services.common.ranker.spec_parts import TaskSpec
from services.common.ranker.states import Interaction

Float32Array = npt.NDArray[np.float32]

ITEMS, RECENT_ITEMS, USERS_AND_ITEMS = "items", "recent_items", "users_and_items"
NAMES = (ITEMS, RECENT_ITEMS, USERS_AND_ITEMS)
"""The rate of the item so far; the same over the latest events; rate of the item and rate of the user together."""
_PRIOR = 5.0
# A decayed counter is scaled so that the present counts 1; what it is multiplied by may not overflow.
_MOST_SCALE = 1e200


class _Tally:
    """Of one entity: events, those of them that say something of the task, and those that say yes."""

    __slots__ = ("events", "labels", "positives")

    def __init__(self) -> None:
        self.positives, self.labels, self.events = 0.0, 0.0, 0.0

    def add(self, positive: float | None, weight: float = 1.0) -> None:
        self.events += weight
        if positive is not None:
            self.positives += weight * positive
            self.labels += weight

    def divide(self, scale: float) -> tuple[float, float, float]:
        """Return positives, labels and events over a scale."""
        return self.positives / scale, self.labels / scale, self.events / scale


class _TaskCounters:
    """Counts of one task. Where negatives are drawn, how often an item was shown follows from the number of events: each shows its chosen
    item, and others in equal shares of the catalogue, whether or not it says something of the chosen one."""

    def __init__(self, half_life_events: float) -> None:
        self.all, self.recent_all = _Tally(), _Tally()
        self.items: dict[str, _Tally] = defaultdict(_Tally)
        self.recent: dict[str, _Tally] = defaultdict(_Tally)
        self.users: dict[str, _Tally] = defaultdict(_Tally)
        self._growth, self._scale = 2.0 ** (1.0 / half_life_events), 1.0

    def add(self, interaction: Interaction, positive: float | None) -> None:
        """positive: None: the event says nothing of the task."""
        self._scale *= self._growth
        if self._scale > _MOST_SCALE:
            for tally in (self.recent_all, *self.recent.values()):
                tally.positives, tally.labels, tally.events = tally.divide(self._scale)
            self._scale = 1.0
        for tally in (self.all, self.items[interaction.item_id], self.users[interaction.user_id]):
            tally.add(positive)
        for tally in (self.recent_all, self.recent[interaction.item_id]):
            tally.add(positive, self._scale)

    def rates(self, item_ids: Sequence[str], catalogue: int, others: int, *, recent: bool) -> list[float]:
        """Return the smoothed rate of each item. others: how many unanswered items an event shows; 0: those say nothing."""
        whole, tallies, scale = (self.recent_all, self.recent, self._scale) if recent else (self.all, self.items, 1.0)
        positives, labels, events = whole.divide(scale)
        prior = (positives + 0.5) / (labels + events * others + 1.0)
        shown_unchosen = events * others / max(catalogue - 1, 1)
        rates = []
        for item_id in item_ids:
            tally = tallies.get(item_id)
            own_positives, own_labels, own_events = tally.divide(scale) if tally is not None else (0.0, 0.0, 0.0)
            # An event that chose this item is none that showed it as an unchosen one.
            shown = own_labels + (max(shown_unchosen - own_events * others / max(catalogue - 1, 1), 0.0))
            rates.append((own_positives + _PRIOR * prior) / (shown + _PRIOR))
        return rates

    def user_odds(self, user_id: str) -> float:
        """Return the log-odds of the user's rate above those of all."""
        prior = (self.all.positives + 0.5) / (self.all.labels + 1.0)
        tally = self.users.get(user_id)
        positives, labels = (tally.positives, tally.labels) if tally is not None else (0.0, 0.0)
        return _odds((positives + _PRIOR * prior) / (labels + _PRIOR)) - _odds(prior)


def names_of(spec: FeatureSpec, task: TaskSpec) -> tuple[str, ...]:
    """Return the baselines of a task: where negatives are drawn, all users have the same rate."""
    return (ITEMS, RECENT_ITEMS) if spec.draws_negatives(task) else NAMES


class Counters:
    """The baselines of every task of a feature spec."""

    def __init__(self, spec: FeatureSpec) -> None:
        """Start with nothing counted."""
        self._spec = spec
        self._tasks = {task.name: _TaskCounters(spec.counters.half_lives_events[-1]) for task in spec.tasks}

    def add(self, interaction: Interaction) -> None:
        """Count one act or impression: for the tasks that it says something about, and as a shown list where negatives are drawn."""
        labels = {label.task: label.value for label in labels_of_row(self._spec, interaction.kind, interaction.value)}
        for task in self._spec.tasks:
            if task.name in labels or self._spec.draws_negatives(task):
                self._tasks[task.name].add(interaction, labels.get(task.name))

    def scores(self, user_id: str, item_ids: Sequence[str], catalogue: int) -> dict[str, Float32Array]:
        """Return by baseline float32 [items, tasks]: probabilities.

        Args:
            item_ids: what one event shows, the chosen one first.
            catalogue: how many items the others are drawn from.
        """
        found = {name: np.empty((len(item_ids), len(self._spec.tasks)), np.float32) for name in NAMES}
        for column, task in enumerate(self._spec.tasks):
            own = self._tasks[task.name]
            draws = self._spec.draws_negatives(task)
            others = len(item_ids) - 1 if draws else 0
            rates = own.rates(item_ids, catalogue, others, recent=False)
            found[ITEMS][:, column] = rates
            found[RECENT_ITEMS][:, column] = own.rates(item_ids, catalogue, others, recent=True)
            # Where each act is a positive among items without one, all users have the same rate.
            shift = 0.0 if draws else own.user_odds(user_id)
            found[USERS_AND_ITEMS][:, column] = [1.0 / (1.0 + math.exp(-(_odds(rate) + shift))) for rate in rates]
        return found


def _odds(rate: float) -> float:
    clipped = min(max(rate, 1e-6), 1.0 - 1e-6)
    return math.log(clipped / (1.0 - clipped))
