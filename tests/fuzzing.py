"""Damaged inputs for fuzz tests: bytes and JSON documents made from sound ones, the same for the same seed.

A parser's test hands every input to the parser and lets through its one error family; anything else fails the test. Half of what looks like
damage is caught by a checksum, so a test also makes inputs whose checksums are right again. Imports in both environments.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

_ODD_NUMBERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "\x00", "é" * 40, "nan", "-1", "1e999", "../../x", "a/b", [], {}, [[]], {"": None}, [None], [1, [2, [3, {}]]]),
    *_ODD_NUMBERS,
    *(-(2**63), 2**70, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
)
_MOST_CHANGES = 4


class Damage:
    """One stream of damaged inputs."""

    def __init__(self, seed: int) -> None:
        """The same seed gives the same stream."""
        self.random = random.Random(seed)
        self._ways: tuple[Callable[[bytearray, Sequence[bytes]], None], ...] = (
            self._flip,
            self._flip,
            self._set_byte,
            self._set_number,
            self._cut,
            self._insert,
            self._remove,
            self._repeat,
            self._splice,
        )

    def of_bytes(self, sound: Sequence[bytes]) -> bytes:
        """Return one of `sound`, changed in up to four places."""
        raw = bytearray(self.random.choice(sound))
        for _ in range(self.random.randint(1, _MOST_CHANGES)):
            self.random.choice(self._ways)(raw, sound)
        return bytes(raw)

    def of_json(self, sound: Any) -> Any:
        """Return a copy of a JSON document with up to four values replaced, removed or added."""
        document = copy.deepcopy(sound)
        for _ in range(self.random.randint(1, _MOST_CHANGES)):
            document = self._changed(document)
        return document

    def _changed(self, document: Any) -> Any:
        holder: Any = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder))) if isinstance(holder, list) else []
            if not keys:
                return copy.deepcopy(self.random.choice(_ODD_VALUES)) if holder is document else document
            key = self.random.choice(keys)
            if isinstance(holder[key], (dict, list)) and holder[key] and self.random.random() < 0.7:
                holder = holder[key]
                continue
            way = self.random.random()
            if way < 0.2:
                del holder[key]
            elif way < 0.3 and isinstance(holder, dict):
                holder[self.random.choice(("", "x", "size", str(key) + "x"))] = holder[key]
            else:
                holder[key] = copy.deepcopy(self.random.choice(_ODD_VALUES))
            return document

    def _at(self, raw: bytearray) -> int:
        return self.random.randrange(len(raw)) if raw else 0

    def _flip(self, raw: bytearray, _: Sequence[bytes]) -> None:
        if raw:
            raw[self._at(raw)] ^= 1 << self.random.randrange(8)

    def _set_byte(self, raw: bytearray, _: Sequence[bytes]) -> None:
        if raw:
            raw[self._at(raw)] = self.random.choice((0, 0x7F, 0x80, 0xFF, self.random.randrange(256)))

    def _set_number(self, raw: bytearray, _: Sequence[bytes]) -> None:
        width = self.random.choice((1, 2, 4, 8))
        number = self.random.choice(_ODD_NUMBERS) % (1 << 8 * width)
        at = self._at(raw)
        raw[at : at + width] = number.to_bytes(width, self.random.choice(("little", "big")))

    def _cut(self, raw: bytearray, _: Sequence[bytes]) -> None:
        del raw[self._at(raw) :]

    def _insert(self, raw: bytearray, _: Sequence[bytes]) -> None:
        at = self._at(raw)
        raw[at:at] = self.random.randbytes(self.random.randint(1, 8))

    def _remove(self, raw: bytearray, _: Sequence[bytes]) -> None:
        at = self._at(raw)
        del raw[at : at + self.random.randint(1, 16)]

    def _repeat(self, raw: bytearray, _: Sequence[bytes]) -> None:
        at = self._at(raw)
        raw[at:at] = raw[at : at + self.random.randint(1, 32)]

    def _splice(self, raw: bytearray, sound: Sequence[bytes]) -> None:
        other = self.random.choice(sound)
        raw[self._at(raw) :] = other[self.random.randrange(len(other) + 1) :]
