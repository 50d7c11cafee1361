"""How texts and tallies are packed into the bytes of a state, and read again. Knows no state."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from services.common.platform.errors import CorruptArtifact, InvalidInput
from services.common.ranker.tallies import Tally

U16 = struct.Struct("<H")
F64 = struct.Struct("<d")
I64 = struct.Struct("<q")
_TALLY = struct.Struct("<ddd")
_LONGEST_TEXT = 0xFFFF


def check_packable(*texts: str) -> None:
    """Refuse what no state could be written with. Doors have tighter bounds (services.common.events.limits): this one is the last.

    Raises:
        InvalidInput: a text has more than 65,535 bytes.
    """
    for text in texts:
        if len(text) * 4 > _LONGEST_TEXT and len(text.encode()) > _LONGEST_TEXT:
            size = len(text.encode())
            raise InvalidInput(f"{text[:40]!r}…: it has {size} bytes; an id or category in a state has at most {_LONGEST_TEXT}")


def pack_text(text: str) -> bytes:
    """Pack a text that `check_packable` lets pass."""
    raw = text.encode()
    return struct.pack("<H", len(raw)) + raw


def pack_tallies(tallies: Mapping[str, Tally]) -> bytes:
    """Pack at most 65,535 tallies with their names, order kept."""
    parts = [struct.pack("<H", len(tallies))]
    for name, tally in tallies.items():
        parts += (pack_text(name), _TALLY.pack(*tally))
    return b"".join(parts)


def _are_counts(numbers: Sequence[float]) -> bool:
    """Whether numbers can be counts, sums, or an offset, which may be -1."""
    return not numbers or (math.isfinite(sum(numbers)) and min(numbers) >= -1)


class Cursor:
    """Reads packed fields one after another. Raises CorruptArtifact when the state is damaged: too short, too long, or no counts."""

    def __init__(self, data: bytes, what: str) -> None:
        """`what` the bytes are, for errors."""
        self._data = data
        self._at = 0
        self._what = what

    def take(self, packed: struct.Struct) -> tuple[float, ...]:
        """Return the next numbers: counts, sums, or an offset, which may be -1."""
        try:
            values = packed.unpack_from(self._data, self._at)
        except struct.error as error:
            raise CorruptArtifact(f"{self._what}: {len(self._data)} bytes are too few ({error})") from error
        self._at += packed.size
        if not _are_counts(values):
            raise CorruptArtifact(f"{self._what}: a count is negative, infinite or no number")
        return values

    def texts_with(self, packed: struct.Struct) -> list[tuple[str, tuple[float, ...]]]:
        """Read a number of (text, values) and those; in one loop over local names, since a user has some forty of them."""
        number = int(self.take(U16)[0])
        data, at, size = self._data, self._at, packed.size
        found = []
        try:
            for _ in range(number):
                text_at = at + 2
                at = text_at + (data[at] | data[at + 1] << 8) + size
                found.append((data[text_at : at - size].decode(), packed.unpack_from(data, at - size)))
        except (struct.error, IndexError) as error:
            raise CorruptArtifact(f"{self._what}: {len(data)} bytes are too few ({error})") from error
        except UnicodeDecodeError as error:
            raise CorruptArtifact(f"{self._what}: a text is not UTF-8 ({error})") from error
        if not _are_counts([number for _, numbers in found for number in numbers]):
            raise CorruptArtifact(f"{self._what}: a count is negative, infinite or no number")
        self._at = at
        return found

    def tallies(self) -> dict[str, Tally]:
        """Return what `pack_tallies` packed."""
        return {name: Tally._make(values) for name, values in self.texts_with(_TALLY)}

    @property
    def is_at_end(self) -> bool:
        """Whether nothing follows."""
        return self._at == len(self._data)

    def end(self) -> None:
        """Say that nothing may follow."""
        if self._at != len(self._data):
            raise CorruptArtifact(f"{self._what}: {len(self._data) - self._at} bytes too many")
