"""The order in which a recorded history is learned, and how far the states are behind it. Pure.

The order is that of time. Where a small site's sessions stand one after the other, they can be overlaid instead, so that many users are
active at once, as in a busy service (services.common.ranker.overlay).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol, runtime_checkable

from services.common.ranker.overlay import overlay, take_turns
from services.common.ranker.states import Interaction

MOST_TOGETHER = 65_536
"""Events of one second, or within the lag, that are in memory at once: a file may know nothing but dates."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An event in the order of a replay; events of one block happen together: all are predicted before any of them is known."""

    interaction: Interaction
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How a recorded history is replayed."""

    epochs: int = 1
    """Passes. Each starts with empty states and, so that rows never know the future, with an empty user table."""
    events_per_step: int = 64
    """Events of one learner step."""
    active_users: int = 0
    """0: the order of time; else so many sessions are overlaid at once, as in a busy service."""
    gap_cap_s: float = 20.0
    """Longest gap within an overlaid session."""
    feature_lag_s: float = 1.0
    """In the order of time, states are so far behind, about as they are in service."""
    feature_lag_events: int = 30
    """Where sessions are overlaid, and no time is left to go by, states are this many events behind."""
    seed: int = 0
    """Of the order of entry and of the candidates."""


class OwnEvents(Protocol):
    """The events of one user, in the order of time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Interaction:
        """Return an event."""

    def second(self, index: int) -> int:
        """Return the Unix second of an event."""


class UsersEvents(Protocol):
    """Events by user; users in the order of their first event."""

    def __len__(self) -> int:
        """Return the number of users."""

    def __iter__(self) -> Iterator[OwnEvents]: ...


@runtime_checkable
class GroupedByUser(Protocol):
    """Events that are not in memory, but can be had by user."""

    def by_user(self) -> UsersEvents:
        """Return them by user."""


class ReplayOrder:
    """Events in the order in which they are learned; made anew each time that it is iterated, so that none of them stays in memory."""

    def __init__(self, interactions: Sequence[Interaction], config: BatchConfig) -> None:
        """interactions: in the order of time."""
        self._interactions, self._config = interactions, config

    def __len__(self) -> int:
        return len(self._interactions)

    def __iter__(self) -> Iterator[Placed]:
        config = self._config
        if not config.active_users:
            return _in_order_of_time(self._interactions)
        if isinstance(self._interactions, GroupedByUser):
            users = self._interactions.by_user()
            turns = take_turns(
                users,
                len(users),
                lambda own, position: own.second(position),
                active=config.active_users,
                gap_cap_s=config.gap_cap_s,
                seed=config.seed,
            )
            return (Placed(own[position], block) for own, position, _, block in turns)
        user_ids = [interaction.user_id for interaction in self._interactions]
        seconds = [interaction.time_ms // 1000 for interaction in self._interactions]
        places = overlay(user_ids, seconds, active=config.active_users, gap_cap_s=config.gap_cap_s, seed=config.seed)
        return (Placed(self._interactions[place.event], place.block) for place in places)


def _in_order_of_time(interactions: Iterable[Interaction]) -> Iterator[Placed]:
    block = -1
    for together in _seconds(interactions):
        # Of one second (of one day, in a file that has only dates) nobody knows the order: a user's events are one block.
        by_user: dict[str, list[Interaction]] = {}
        for interaction in together:
            by_user.setdefault(interaction.user_id, []).append(interaction)
        for own in by_user.values():
            block += 1
            for interaction in own:
                yield Placed(interaction, block)


def _seconds(interactions: Iterable[Interaction]) -> Iterator[list[Interaction]]:
    """Yield the events of each second; more than `MOST_TOGETHER` in parts."""
    together: list[Interaction] = []
    for interaction in interactions:
        if together and (_second(interaction) != _second(together[0]) or len(together) == MOST_TOGETHER):
            yield together
            together = []
        together.append(interaction)
    if together:
        yield together


def _second(interaction: Interaction) -> int:
    return interaction.time_ms // 1000


def replay_order(interactions: Sequence[Interaction], config: BatchConfig) -> ReplayOrder:
    """Return the events, given in the order of time, in the order in which they are learned."""
    return ReplayOrder(interactions, config)


def blocks(placed: Iterable[Placed]) -> Iterator[list[Interaction]]:
    """Yield the events of each block: one user's, all of which are predicted before any of them is known."""
    for _, block in groupby(placed, key=lambda event: event.block):
        yield [event.interaction for event in block]


class Behind:
    """Events that happened and that the states do not contain yet: what a request made now does not know."""

    def __init__(self, config: BatchConfig) -> None:
        """Empty."""
        self._is_overlaid = config.active_users > 0
        self._most = config.feature_lag_events if self._is_overlaid else MOST_TOGETHER
        self._lag_ms = config.feature_lag_s * 1000.0
        self._events: deque[Interaction] = deque()

    def add(self, block: Iterable[Interaction]) -> None:
        """Take the next events, in the order of the replay."""
        self._events.extend(block)

    def known_at(self, time_ms: int) -> Iterator[Interaction]:
        """Yield, once, the events that a request of this time knows, oldest first; states take them in."""
        while self._events and (len(self._events) > self._most or (not self._is_overlaid and self._is_known(time_ms))):
            yield self._events.popleft()

    def _is_known(self, time_ms: int) -> bool:
        return self._events[0].time_ms + self._lag_ms <= time_ms

    def rest(self) -> Iterator[Interaction]:
        """Yield, once, all that are left."""
        while self._events:
            yield self._events.popleft()


_WINDOWS, _WINDOW_EVENTS = 64, 1_000
_MOST_IN_A_ROW = 0.5


def sessions_in_a_row(interactions: Sequence[Interaction]) -> float | None:
    """Return the share of blocks, in the order of time, that are of the same user as the block before; None: of too few blocks to tell.

    Windows of events, spread over all of them, are looked at.
    """
    starts = range(0, len(interactions), max(len(interactions) // _WINDOWS, _WINDOW_EVENTS))
    same = pairs = 0
    for start in starts:
        users = [block[0].user_id for block in blocks(_in_order_of_time(interactions[start : start + _WINDOW_EVENTS]))]
        pairs += max(len(users) - 1, 0)
        same += sum(left == right for left, right in pairwise(users))
    return same / pairs if pairs >= _WINDOWS else None


def is_coarse(interactions: Sequence[Interaction]) -> bool:
    """Say whether times tell little: in most windows of events, spread over all of them, the first and the last are of one second."""
    windows = range(0, len(interactions), max(len(interactions) // _WINDOWS, _WINDOW_EVENTS))
    ends = [(start, min(start + _WINDOW_EVENTS, len(interactions)) - 1) for start in windows]
    same = sum(last > first and _second(interactions[first]) == _second(interactions[last]) for first, last in ends)
    return same > len(ends) / 2


def order_remarks(interactions: Sequence[Interaction], config: BatchConfig) -> Iterator[str]:
    """Yield what whoever trains should know of the order of time, where that is how events are learned."""
    if config.active_users:
        return
    if is_coarse(interactions):
        yield (
            "most events share their second (their day, where only dates are known) with those around them: features of a second are of "
            "the seconds before, so none of these events knows the others; where only dates are given, give times if there are any"
        )
    share = sessions_in_a_row(interactions)
    if share is not None and share > _MOST_IN_A_ROW:
        yield (
            f"{share:.0%} of requests follow one of the same user, so sessions stand one after the other, as in no busy service: "
            "compare the report with that of --active-users 100, which overlays so many"
        )
