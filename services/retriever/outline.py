"""What every reader of a format gives: a title, and sections, which are paragraphs under the path of the headings above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.retriever.core.documents import Section
from services.retriever.core.text import clean, clean_code

Extracted = tuple[str, tuple[Section, ...]]
"""Title (may be empty) and sections."""

Say = Callable[[str], None]
"""Is told, in half a sentence, what of a file its text lacks; whoever put the file there would miss it."""

TITLE_CHARS = 200
_MAX_STRETCHES = 10
MAX_TEXT_CHARS = 16 * 1024 * 1024
"""Of one document. A small file can hold more: what is packed, or rows that repeat the names of their columns."""


class Unreadable(Exception):
    """A file whose text cannot be taken; the message says why. It is refused until it changes."""


def unheard(_: str) -> None:
    """Nobody asks what is left out."""


def numbers_of(numbers: Sequence[int]) -> str:
    """Return rising numbers as text: "3, 7 to 9", and of many the first ones."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and stretches[-1][-1] == number - 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    shown = [str(one[0]) if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in stretches[:_MAX_STRETCHES]]
    more = sum(map(len, stretches[_MAX_STRETCHES:]))
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclass(slots=True)
class _Heading:
    """One that what follows stands under.

    Attributes:
        level: 1 is the highest.
        text: as it stands in the path.
        own: what the document itself says there; empty for what the reader made: a page's number, a sheet's name.
        path: with the page that it stands on.
        is_bare: whether nothing stands under it yet.
    """

    level: int
    text: str
    own: str
    path: str = ""
    is_bare: bool = True


class Outline:
    """Takes headings and paragraphs in the order of the document. A heading that nothing stands under is text."""

    def __init__(self, title: str) -> None:
        """`title`: of the document; empty: its first heading is."""
        self._title = title
        self._path: list[_Heading] = []
        self._paragraphs: list[str] = []
        self._sections: list[Section] = []
        self._num_chars = 0

    def heading(self, level: int, text: str, *, own: str | None = None) -> None:
        """Begin a section. A heading that is too long for a path is text as well.

        Args:
            level: 1 is the highest.
            text: of the heading.
            own: what of it the document says; empty: the reader made it. None: all.
        Raises:
            Unreadable: the document has too much text.
        """
        self._close()
        self._leave(level)
        heading = clean(text).replace("\n", " ")
        if not heading:
            return
        own = heading if own is None else clean(own).replace("\n", " ")
        self._title = self._title or heading[:TITLE_CHARS]
        self._path.append(_Heading(level, heading[:TITLE_CHARS], own))
        if not own and len(self._path) > 1:
            above = self._path[-2]
            above.path = above.path or self._joined()
        if len(heading) > TITLE_CHARS:
            self._keep(own)

    def add(self, text: str) -> None:
        """Add a paragraph. Within one a blank line is a matter of the source's layout.

        Raises:
            Unreadable: the document has too much text.
        """
        self._keep(clean(text).replace("\n\n", "\n"))

    def add_code(self, text: str) -> None:
        """Add lines of code, as they are written.

        Raises:
            Unreadable: the document has too much text.
        """
        self._keep(clean_code(text))

    def result(self) -> Extracted:
        """Return the title and the sections that have text."""
        self._close()
        self._leave(0)
        return self._title, tuple(self._sections)

    def _keep(self, paragraph: str) -> None:
        if not paragraph.strip():
            return
        self._num_chars += len(paragraph)
        if self._num_chars > MAX_TEXT_CHARS:
            raise Unreadable(f"it holds more than {MAX_TEXT_CHARS // 2**20} Mi characters of text; split it")
        self._paragraphs.append(paragraph)
        for one in self._path:
            one.is_bare = False

    def _joined(self) -> str:
        return " > ".join(one.text for one in self._path)

    def _leave(self, level: int) -> None:
        """Leave the headings that are not above a level; those that nothing stands under are kept as text."""
        while self._path and self._path[-1].level >= level:
            path = self._path[-1].path or self._joined()
            left = self._path.pop()
            if left.own and left.is_bare:
                self._keep(left.own)
                self._sections.append(Section(heading=path, paragraphs=(self._paragraphs.pop(),)))

    def _close(self) -> None:
        if self._paragraphs:
            self._sections.append(Section(heading=self._joined(), paragraphs=tuple(self._paragraphs)))
            self._paragraphs = []
