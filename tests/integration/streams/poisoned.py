"""A stream with a fault that nobody foresaw: `python -m tests.integration.streams.poisoned`.

POISONED_STREAM names the stream; records of the user "poison" make it raise, or end the process at once (POISON=exit).
"""

from __future__ import annotations

import os
import runpy
from typing import Any

from streams.features.core import FeaturePartition
from streams.joiner.core import JoinerPartition


def _die() -> None:
    if os.environ["POISON"] == "exit":
        os._exit(9)
    raise ZeroDivisionError("nobody thought of that")


def _poison(owner: type, name: str, user_of: Any) -> None:
    sound = getattr(owner, name)

    def poisoned(self: Any, *arguments: Any) -> Any:
        if user_of(arguments[0]) == "poison":
            _die()
        return sound(self, *arguments)

    setattr(owner, name, poisoned)


if __name__ == "__main__":
    _poison(FeaturePartition, "apply", lambda act: act.interaction.user_id)
    _poison(JoinerPartition, "on_feedback", lambda feedback: feedback.user_id)
    runpy.run_module(os.environ["POISONED_STREAM"], run_name="__main__")
