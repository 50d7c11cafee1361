"""A study at a distance: workers ask by calls, and the process that has the study answers. Knows nothing of how calls travel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from services.trainer.search.space import Space
from services.trainer.search.study import Finished, Study
from services.trainer.search.trials import Clock

Call = Callable[[str, tuple[Any, ...]], Any]
"""Asks whoever has the study: the name of what is asked, and its arguments; returns the answer."""
_ENDS = ("complete", "prune", "fail", "put_off")
_ASKED = frozenset({"next", "same_as", "should_prune", *_ENDS})
TELL, SECONDS_LEFT = "tell", "seconds_left"


class RemoteStudy:
    """What a `Runner` asks of a study, each as a call."""

    def __init__(self, space: Space, call: Call) -> None:
        """space: what is searched; it does not change, and is here."""
        self.space, self._call = space, call

    def next(self, most: int) -> tuple[int, dict[str, Any]] | None:
        """Begin a trial; return its number and its values by key, None where so many are done or under way."""
        begun: tuple[int, dict[str, Any]] | None = self._call("next", (most,))
        return begun

    def same_as(self, number: int) -> Finished | None:
        """Return a finished trial of the same values."""
        found: Finished | None = self._call("same_as", (number,))
        return found

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Note a portion's value; say whether the trial is not worth going on with."""
        return bool(self._call("should_prune", (number, step, value)))

    def complete(self, number: int, value: float, noted: Mapping[str, Any]) -> None:
        """Close a trial that was measured."""
        self._call("complete", (number, value, dict(noted)))

    def prune(self, number: int, noted: Mapping[str, Any]) -> None:
        """Close a trial that was ended early."""
        self._call("prune", (number, dict(noted)))

    def fail(self, number: int, reason: str) -> None:
        """Close a trial that could not be measured."""
        self._call("fail", (number, reason))

    def put_off(self, number: int) -> None:
        """Close a trial that the time limit ended."""
        self._call("put_off", (number,))


class StudyDoor:
    """Answers the calls of workers, and knows which trial each of them has begun."""

    def __init__(self, study: Study, *, tell: Callable[[str], None], deadline: float | None, clock: Clock = time.monotonic) -> None:
        """Nobody has begun a trial yet.

        Args:
            study: where trials are kept.
            tell: is told a line per trial.
            deadline: on the clock; None: none.
            clock: in seconds.
        """
        self._study, self._tell, self._deadline, self._clock = study, tell, deadline, clock
        self._begun: dict[int, int] = {}
        self._has_none_left = False

    @property
    def is_late(self) -> bool:
        """Whether the deadline is reached."""
        return self._deadline is not None and self._clock() >= self._deadline

    @property
    def is_done(self) -> bool:
        """Whether workers have nothing left to do: no trial is under way, and none is left, or the time is over."""
        return not self._begun and (self._has_none_left or self.is_late)

    def answer(self, worker: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """Answer a call.

        Raises:
            ValueError: it asks what nobody may ask, or for a trial that another worker has begun.
        """
        if name == TELL:
            self._tell(*arguments)
            return None
        if name == SECONDS_LEFT:
            # Clocks of two machines have no common zero.
            return None if self._deadline is None else self._deadline - self._clock()
        if name not in _ASKED:
            raise ValueError(f"a worker asks for {name!r}; it may ask for {', '.join(sorted(_ASKED))}")
        if name == "next":
            begun = self._study.next(*arguments)
            self._has_none_left = begun is None
            if begun is not None:
                self._begun[worker] = begun[0]
            return begun
        if self._begun.get(worker) != arguments[0]:
            raise ValueError(f"worker {worker} asks for {name} of trial {arguments[0]}, which it has not begun")
        if name in _ENDS:
            del self._begun[worker]
        return getattr(self._study, name)(*arguments)

    def end_of_worker(self, worker: int, how: str) -> int | None:
        """Close the trial that a worker had begun which is gone; return its number, None where there is none."""
        number = self._begun.pop(worker, None)
        if number is not None:
            self._study.end_dead(number, f"its process ended with {how}, twice")
            self._has_none_left = False
        return number
