"""Which adapters are loaded: loading -> warm -> live -> draining, in a fixed number of slots. Pure; `services.llm.adapter_pool` acts on it.

An adapter is live while an alias points at it. One that lost its alias stays warm, for a rollback, until its slot is needed; the one that
lost its alias first is then unloaded first. A name stands for one content as long as this process lives (the engine's prefix cache is keyed
by it), and an integer id for one loading: neither is ever used again for something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from services.common.platform.errors import Conflict, NotFound


class State(Enum):
    """Where an adapter is in its life. LIVE is WARM with an alias."""

    LOADING = "loading"
    WARM = "warm"
    LIVE = "live"
    DRAINING = "draining"


class AdapterNotLoaded(NotFound):
    """No adapter of this name can serve now. Retrying helps once it is loaded."""


class NameTaken(Conflict):
    """The name stands for other content. Retrying does not help: take the next version."""


class AdapterAliased(Conflict):
    """An alias points at the adapter, so it cannot be unloaded. Move the alias first."""


class AdapterDraining(Conflict):
    """The adapter is being unloaded. Retrying helps when it is gone."""


class NoSlotFree(Conflict):
    """Every slot holds an adapter that an alias points at, or that is being loaded. More slots help."""


@dataclass(slots=True)
class Slot:
    """One adapter."""

    name: str
    content_hash: str
    lora_id: int
    """The engine's id of this loading; > 0."""
    is_warm: bool = False
    is_draining: bool = False
    running: int = 0
    aliases: tuple[str, ...] = ()
    last_aliased: int = 0
    """Count of changes at which it was loaded, or had an alias, last."""

    @property
    def state(self) -> State:
        """Return the state that callers are told."""
        if self.is_draining:
            return State.DRAINING
        if not self.is_warm:
            return State.LOADING
        return State.LIVE if self.aliases else State.WARM


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A load that has begun: which id it has, and which adapter must be drained and unloaded first."""

    lora_id: int
    evict: str | None


@dataclass(slots=True)
class Slots:
    """All loaded adapters. Not thread-safe."""

    capacity: int
    _slots: dict[str, Slot] = field(default_factory=dict)
    _targets: dict[str, str] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _last_id: int = 0
    _changes: int = 0

    def get(self, name: str) -> Slot | None:
        """Return the adapter's slot, None when it has none."""
        return self._slots.get(name)

    def all(self) -> list[Slot]:
        """Return every slot that is taken, by name."""
        return [self._slots[name] for name in sorted(self._slots)]

    def begin_load(self, name: str, content_hash: str) -> Loading | None:
        """Reserve a slot; None when the adapter is there already, or on its way.

        Raises:
            NameTaken: the name was loaded with other content.
            AdapterDraining: it is being unloaded.
            NoSlotFree: nothing can be evicted.
        """
        known = self._hashes.setdefault(name, content_hash)
        if known != content_hash:
            raise NameTaken(f"adapter {name} was loaded with content {known}, and now it is {content_hash}: take the next version")
        slot = self._slots.get(name)
        if slot is not None:
            if slot.is_draining:
                raise AdapterDraining(f"adapter {name} is being unloaded: try again")
            return None
        evict = self._victim() if self._num_staying() >= self.capacity else None
        if evict is not None:
            evict.is_draining = True
        self._last_id += 1
        self._changes += 1
        aliases = self._aliases_of(name)
        self._slots[name] = Slot(name, content_hash, self._last_id, aliases=aliases, last_aliased=self._changes)
        return Loading(lora_id=self._last_id, evict=evict.name if evict is not None else None)

    def end_load(self, name: str) -> None:
        """The adapter is warm: it can serve."""
        self._slots[name].is_warm = True

    def fail_load(self, name: str) -> None:
        """The adapter could not be loaded: its slot is free again."""
        del self._slots[name]

    def begin_unload(self, name: str) -> Slot:
        """Refuse new requests for the adapter from now on; return its slot.

        Raises:
            AdapterNotLoaded: it has no slot.
            AdapterAliased: an alias points at it.
            AdapterDraining: it is being loaded, or unloaded already.
        """
        slot = self._slots.get(name)
        if slot is None:
            raise AdapterNotLoaded(f"adapter {name} is not loaded")
        if slot.aliases:
            raise AdapterAliased(f"adapter {name} is what {', '.join(slot.aliases)} points at: move the alias first")
        if slot.is_draining or not slot.is_warm:
            raise AdapterDraining(f"adapter {name} is being {'unloaded' if slot.is_draining else 'loaded'}: try again")
        slot.is_draining = True
        return slot

    def end_unload(self, name: str) -> None:
        """Note that the engine has let go of the adapter."""
        del self._slots[name]

    def acquire(self, name: str) -> Slot:
        """Count a request in.

        Raises:
            AdapterNotLoaded: it cannot serve now.
        """
        slot = self._slots.get(name)
        if slot is None or slot.is_draining or not slot.is_warm:
            what = "is not loaded" if slot is None else f"is {slot.state.value}"
            raise AdapterNotLoaded(f"adapter {name} {what}")
        slot.running += 1
        return slot

    def point(self, targets: Mapping[str, str]) -> list[str]:
        """Take note of what the aliases point at now; return the adapters that they want and that have no warm slot or lose it, sorted.

        One that somebody else loads is among them: it is waited for, and tried again when that fails.

        Args:
            targets: alias -> adapter name, all of them, without those that point at the base.
        """
        self._targets = dict(targets)
        self._changes += 1
        for slot in self._slots.values():
            aliases = self._aliases_of(slot.name)
            if aliases or slot.aliases:
                slot.last_aliased = self._changes
            slot.aliases = aliases
        return sorted({name for name in self._targets.values() if not self._is_there(name)})

    def _is_there(self, name: str) -> bool:
        slot = self._slots.get(name)
        return slot is not None and slot.is_warm and not slot.is_draining

    def _aliases_of(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, target in self._targets.items() if target == name))

    def _num_staying(self) -> int:
        return sum(not slot.is_draining for slot in self._slots.values())

    def _victim(self) -> Slot:
        """Return the adapter to evict: idle before busy, then the one whose alias is longest ago."""
        free = [slot for slot in self._slots.values() if slot.is_warm and not slot.is_draining and not slot.aliases]
        if not free:
            raise NoSlotFree(f"all {self.capacity} adapter slots are taken by adapters that serve an alias or are being loaded")
        return min(free, key=lambda slot: (slot.running > 0, slot.last_aliased))
