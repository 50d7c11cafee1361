"""What control.v1 says about aliases, as every service but its owner sees it: a live view that a `TopicFollower` keeps up to date.

    aliases = AliasView()
    follower = TopicFollower(bootstrap, CONTROL.name, aliases, client_id="router", fetch_wait_ms=200)
    aliases.target("llm/helpdesk/production")     # "SmolLM2-135M-Instruct--helpdesk--v2", "base", or None

Only the trainer's control API writes control.v1 (SetAlias). Names: `llm/TASK/production` -> an adapter's name, or "base";
`prompt/NAME/LABEL` -> "vN".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tunemesh.events.v1.control_pb2 import Alias, ControlRecord
from typing_extensions import override

from services.common.events.dead_letter_writer import Refused, only_log
from services.common.events.envelope import MalformedRecord, parse_value
from services.common.platform.control import ALIAS_PREFIX, ControlState
from services.common.platform.topic_follower import Reader, Record

BASE_MODEL = "base"
"""Target of an `llm/…` alias that answers with the base model, without an adapter."""

_log = logging.getLogger(__name__)


def llm_alias(task: str) -> str:
    """Return the alias of the adapter that answers a task."""
    return f"llm/{task}/production"


def task_of_llm_alias(alias: str) -> str:
    """Return the task whose adapter an alias names; empty when it is another kind of alias."""
    kind, _, rest = alias.partition("/")
    task, _, label = rest.rpartition("/")
    return task if (kind, label) == ("llm", "production") else ""


def prompt_alias(template: str, label: str) -> str:
    """Return the alias of a template's labelled version."""
    return f"prompt/{template}/{label}"


class AliasView(Reader):
    """Thread-safe: one follower writes, any thread reads. `is_known` is False until control.v1 has been read once."""

    def __init__(self, on_change: Callable[[], None] | None = None, on_refused: Refused = only_log) -> None:
        """Nothing is known.

        Args:
            on_change: called in the follower's thread after the first reading and after every change of an alias.
            on_refused: told there of every record that is left out, and why.
        """
        self._on_change, self._on_refused = on_change, on_refused
        self._lock = threading.Lock()
        self._state = ControlState()
        self._aliases: dict[str, Alias] = {}
        self._is_known = False

    @property
    def is_known(self) -> bool:
        """Whether control.v1 has been read to its end once."""
        return self._is_known

    def target(self, alias: str) -> str | None:
        """Return what the alias points at; None when it was never set (or is not known yet)."""
        with self._lock:
            found = self._aliases.get(alias)
        return found.target if found is not None else None

    def all(self) -> dict[str, str]:
        """Return alias -> target."""
        with self._lock:
            return {alias: value.target for alias, value in self._aliases.items()}

    @override
    def begin(self, records: Sequence[Record]) -> None:
        """Start over with these records of control.v1."""
        self._state = ControlState()
        self._apply(records)
        self._is_known = True
        self._changed()

    @override
    def extend(self, records: Sequence[Record]) -> None:
        """Fold in what was appended since."""
        if self._apply(records):
            self._changed()

    def _apply(self, records: Sequence[Record]) -> bool:
        changed = False
        for record in records:
            try:
                believed = self._state.apply(parse_value(record.value, record.headers, ControlRecord))
            except MalformedRecord as error:
                _log.warning("control record at offset %d is left out: %s", record.offset, error)
                self._on_refused(record, str(error))
                continue
            changed = changed or believed
        aliases = {
            subject.removeprefix(ALIAS_PREFIX): control.alias
            for subject, control in self._state.records.items()
            if subject.startswith(ALIAS_PREFIX)
        }
        with self._lock:
            changed, self._aliases = changed and aliases != self._aliases, aliases
        return changed

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()
