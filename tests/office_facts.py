"""What is planted in the office files of the tests, and words around it."""

from __future__ import annotations

from dataclasses import dataclass, field

FILLER = (
    "The house opens in the morning and closes in the evening. Nobody has to ask for a form, since the desk has enough of them. "
    "What was agreed by telephone is confirmed in writing before the week is over. The archive keeps a copy of every letter for a while."
)
TOWNS = ("Aalen", "Bremen", "Celle", "Dresden", "Emden", "Fulda", "Gotha", "Halle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What stands in one passage: `text` all in its text, `title` all in its title."""

    text: tuple[str, ...]
    title: tuple[str, ...] = ()


@dataclass(slots=True)
class OfficeFile:
    """One file and what was planted in it. `absent`: what nobody is shown, so that no passage may have it; `once`: what all pages have."""

    name: str
    raw: bytes = b""
    facts: list[Fact] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    once: list[str] = field(default_factory=list)

    def plant(self, *text: str, title: tuple[str, ...] = ()) -> None:
        self.facts.append(Fact(text=text, title=title))


def rule(number: int, place: int) -> str:
    """A sentence that no other file has, long enough to be broken over lines."""
    return f"Whoever borrows device {number}{place} brings it back by hour {number * 7 + place} on the second Thursday of the month."


def price(number: int, row: int, column: int) -> int:
    return 1000 + number * 100 + row * 10 + column
