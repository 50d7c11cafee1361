"""The online features of one partition of feedback: which states an act changes, and how. Pure: no I/O, no clock.

States are loaded into a `StateCache` before a batch and taken from it as changes afterwards; all changes of a batch are written at once,
together with the offset that they reach (`GlobalState.last_offset`), so a batch is applied exactly once however often it is read.
Repetitions of a feedback id among the latest acts are skipped. Knows neither Redis nor Kafka.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import value_fault
from services.common.ranker.recall_state import CO_OCCURRENCE_DEPTH, MAX_NEIGHBOURS, Neighbours, Popularity
from services.common.ranker.states import NO_OFFSET, GlobalState, Interaction, ItemState, UserState
from services.common.ranker.tallies import Tally

# Acts remembered per partition: a sender's retry comes within seconds.
MAX_RECENT_IDS = 10_000


@dataclass(frozen=True, slots=True)
class Act:
    """One feedback of the partition."""

    offset: int
    act_id: str
    """See `Feedback.act_id`."""
    interaction: Interaction


@dataclass(slots=True)
class StateCache:
    """States in memory, by id. What is absent must be loaded, or be known to exist nowhere, before an act needs it."""

    users: dict[str, UserState] = field(default_factory=dict)
    items: dict[str, ItemState] = field(default_factory=dict)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)

    def trim(self, limit: int) -> None:
        """Forget the states longest in the cache beyond `limit` of each kind. Call when nothing is unwritten."""
        for states in (self.users, self.items, self.neighbours):
            for name in list(states)[: max(0, len(states) - limit)]:
                del states[name]


@dataclass(slots=True)
class Changes:
    """What must be written: ids of changed states, and additions."""

    users: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    neighbours: set[str] = field(default_factory=set)
    seen: dict[str, set[str]] = field(default_factory=dict)
    """Item ids newly seen, by user id."""
    recent_ids: list[tuple[str, int]] = field(default_factory=list)
    """(act id, offset), oldest first."""

    def __bool__(self) -> bool:
        return bool(self.recent_ids)


def rebuilt_global(partitions: int, recent_ids: Iterable[tuple[str, int]], counts: Mapping[str, tuple[float, float]]) -> GlobalState:
    """Return what can be known of a partition whose GlobalState cannot be read: how far it got, and its clock. Opinions are counted anew.

    Args:
        partitions: among which the stream is split.
        recent_ids: (act id, offset) pairs, written together with the lost state.
        counts: `Popularity.counts`, likewise: the newest clock among them is that of the last act.
    """
    acts = max((clock for _, clock in counts.values()), default=0.0) / partitions
    return GlobalState(partitions, max((offset for _, offset in recent_ids), default=NO_OFFSET), Tally(acts, 0.0, 0.0))


class FeaturePartition:
    """The reducer of one partition.

    Attributes:
        cache: the states that it works on.
        global_state: of this partition.
        popularity: of this partition.
    """

    def __init__(
        self, spec: FeatureSpec, global_state: GlobalState, popularity: Popularity, recent_ids: Iterable[tuple[str, int]] = ()
    ) -> None:
        """`recent_ids` are (act id, offset) pairs, oldest first, as earlier batches gave them out."""
        self.cache = StateCache()
        self.global_state = global_state
        self.popularity = popularity
        self._spec = spec
        self._recent = OrderedDict(recent_ids)
        self._changes = Changes()

    def is_applied(self, offset: int) -> bool:
        """True when the states contain this offset already."""
        return offset <= self.global_state.last_offset

    def apply(self, act: Act, categories: Sequence[str]) -> bool:
        """Take one act in; False when it is known already, its kind is not in the feature spec or its value is outside the kind's range.

        Args:
            act: in offset order.
            categories: of its item; empty when the catalogue does not know it.
        """
        interaction = act.interaction
        if self.is_applied(act.offset) or interaction.kind not in self._spec.kinds or act.act_id in self._recent:
            return False
        if value_fault(self._spec, interaction.kind, interaction.value) is not None:
            return False  # the joiner sets it aside
        user_id, item_id = interaction.user_id, interaction.item_id
        user = self.cache.users.setdefault(user_id, UserState())
        self._note_neighbours(item_id, [entry.item_id for entry in user.history[:CO_OCCURRENCE_DEPTH]])
        user.apply(self._spec, interaction, categories, act.offset)
        self.global_state.apply(self._spec, interaction, categories, act.offset)
        clock = self.global_state.clock
        self.cache.items.setdefault(item_id, ItemState()).apply(self._spec, interaction, clock, act.offset)
        self.popularity.add(item_id, clock)
        self._remember(act)
        self._changes.users.add(user_id)
        self._changes.items.add(item_id)
        self._changes.seen.setdefault(user_id, set()).add(item_id)
        return True

    def _note_neighbours(self, item_id: str, earlier: Sequence[str]) -> None:
        for other in dict.fromkeys(earlier):
            if other == item_id:
                continue
            for one, two in ((item_id, other), (other, item_id)):
                self.cache.neighbours.setdefault(one, Neighbours(MAX_NEIGHBOURS)).add(two)
                self._changes.neighbours.add(one)

    def _remember(self, act: Act) -> None:
        self._recent[act.act_id] = act.offset
        self._changes.recent_ids.append((act.act_id, act.offset))
        while len(self._recent) > MAX_RECENT_IDS:
            self._recent.popitem(last=False)

    def items_near(self, user_ids: Iterable[str]) -> set[str]:
        """Return the items whose neighbours an act of one of these (loaded) users may change, beside the act's own item."""
        near: set[str] = set()
        for user_id in user_ids:
            state = self.cache.users.get(user_id)
            if state is not None:
                near.update(entry.item_id for entry in state.history[:CO_OCCURRENCE_DEPTH])
        return near

    def take_changes(self) -> Changes:
        """Return what changed since the last call; the caller writes it before it takes more acts in."""
        changes, self._changes = self._changes, Changes()
        return changes
