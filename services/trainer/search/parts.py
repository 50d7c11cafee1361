"""The events of a search in three parts of time: learned, compared on (validation), and measured on at the end (test). Pure.

Trials get `Trialled` alone, which holds nothing of the test part: neither its events nor its new items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.platform.errors import ConfigurationError
from services.common.ranker.states import Interaction
from services.trainer.attribute_history import Versions
from services.trainer.event_files.history import History, cut_by_time
from services.trainer.held_out.evaluation import MIN_EVENTS


@dataclass(frozen=True, slots=True)
class Trialled:
    """Events that are learned, and those behind them that are scored.

    Attributes:
        learned: in the order of time.
        scored: in the order of time, behind `learned`.
        categories: of every item of these events, by id.
        users, items: attributes by time, which an event sees from later seconds on only.
    """

    learned: Sequence[Interaction]
    scored: Sequence[Interaction]
    categories: Mapping[str, Sequence[str]]
    users: Versions
    items: Versions

    @property
    def first_items(self) -> list[str]:
        """Return the items of `learned`: what is shown while it is learned (D91)."""
        return list(dict.fromkeys(one.item_id for one in self.learned))


@dataclass(frozen=True, slots=True)
class Parts:
    """What trials see, and what the winner is measured on: there all but the last part is learned."""

    trials: Trialled
    final: Trialled


def divide(history: History, *, validation: float, test: float) -> Parts:
    """Divide a history by time. The cuts split no second.

    Args:
        history: all events.
        validation: the share that trials are compared on, before the test part.
        test: the last share.
    Raises:
        ConfigurationError: a part is too small to say anything.
    """
    events = history.interactions
    last = cut_by_time(events, 1.0 - test)
    middle = cut_by_time(events, 1.0 - test - validation)
    learned, validated, tested = events[:middle], events[middle:last], events[last:]
    for name, part in (("learned", learned), ("validation", validated), ("test", tested)):
        if len(part) < MIN_EVENTS:
            raise ConfigurationError(
                f"of {len(events)} events {len(part)} are left for the {name} part; it takes {MIN_EVENTS}: give more events, finer times "
                "(no second, and no day of dates, is split), or other --validation and --held-out"
            )
    seen = {one.item_id for one in learned} | {one.item_id for one in validated}
    known = {item_id: names for item_id, names in history.categories.items() if item_id in seen}
    of = (history.user_attributes, history.item_attributes)
    return Parts(Trialled(learned, validated, known, *of), Trialled(events[:last], tested, history.categories, *of))
