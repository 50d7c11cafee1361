"""The tables of a page: what its lines enclose, and columns that words form without lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.retriever.core.text import joined_lines
from services.retriever.pdf_page import BROKEN_WORD, Box, Word
from services.retriever.tables import Cell

# Two rules nearer than that are one: the two edges of a thin rectangle.
_SAME_PT = 3.0
_BROKEN = re.compile(f"{BROKEN_WORD} (?=(.))")
_MAX_PLACES = 20_000
"""Of one table; more crossings of lines are a drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the rules of a table are: `xs` from the left, `ys` from the top."""

    box: Box
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    levels: tuple[Box, ...]
    uprights: tuple[Box, ...]


def grids_of(rules: Iterable[Box]) -> list[Grid]:
    """Return the tables that lines enclose: at least two columns and two rows."""
    levels, uprights = _merged(rules)
    grids: list[Grid] = []
    for group in _connected(levels, uprights):
        across = [rule for rule in group if rule.width >= rule.height]
        down = [rule for rule in group if rule.width < rule.height]
        xs = _distinct([rule.left for rule in down])
        ys = _distinct([rule.bottom for rule in across])[::-1]
        if len(xs) >= 3 and len(ys) >= 3 and len(xs) * len(ys) <= _MAX_PLACES:
            box = Box(xs[0], ys[-1], xs[-1], ys[0])
            grids.append(Grid(box=box, xs=tuple(xs), ys=tuple(ys), levels=tuple(across), uprights=tuple(down)))
    return grids


def cells_of(grid: Grid, words: Sequence[Word]) -> list[list[Cell]]:
    """Return the rows of a table; a cell ends where a rule is.

    Args:
        words: inside the grid, in the order of the page.
    """
    num_rows, num_columns = len(grid.ys) - 1, len(grid.xs) - 1
    inside: dict[tuple[int, int], list[tuple[int, Word]]] = {}
    for number, word in enumerate(words):
        x, y = (word.box.left + word.box.right) / 2, (word.box.bottom + word.box.top) / 2
        column = sum(x > edge for edge in grid.xs[1:-1])
        row = sum(y < edge for edge in grid.ys[1:-1])
        inside.setdefault((row, column), []).append((number, word))
    taken: set[tuple[int, int]] = set()
    rows: list[list[Cell]] = [[] for _ in range(num_rows)]
    for row in range(num_rows):
        for column in range(num_columns):
            if (row, column) in taken:
                continue
            width = 1
            while column + width < num_columns and (row, column + width) not in taken and not _is_parted(grid, row, column + width):
                width += 1
            height = 1
            while row + height < num_rows and not _is_under_ruled(grid, row + height, column):
                height += 1
            places = [(row + down, column + right) for down in range(height) for right in range(width)]
            taken.update(places)
            found = [word for _, word in sorted((found for place in places for found in inside.get(place, ())), key=lambda some: some[0])]
            rows[row].append(
                Cell(
                    text=text_of(found),
                    num_columns=width,
                    num_rows=height,
                    is_bold=bool(found) and all(word.is_bold for word in found),
                )
            )
    return rows


def text_of(words: Iterable[Word]) -> str:
    """Return words as one line; a word that was broken inside is whole again."""
    text = joined_lines(" ".join(word.text for word in words)).strip()
    return _BROKEN.sub(lambda found: "" if found[1].islower() else "-", text) if BROKEN_WORD in text else text


def _is_parted(grid: Grid, row: int, column: int) -> bool:
    """Say whether a rule stands on the left of a place."""
    x, y = grid.xs[column], (grid.ys[row] + grid.ys[row + 1]) / 2
    return any(abs(rule.left - x) <= _SAME_PT and rule.bottom <= y <= rule.top for rule in grid.uprights)


def _is_under_ruled(grid: Grid, row: int, column: int) -> bool:
    """Say whether a rule stands above a place."""
    x, y = (grid.xs[column] + grid.xs[column + 1]) / 2, grid.ys[row]
    return any(abs(rule.bottom - y) <= _SAME_PT and rule.left <= x <= rule.right for rule in grid.levels)


def _merged(rules: Iterable[Box]) -> tuple[list[Box], list[Box]]:
    """Return the level and the upright rules; what continues another is a part of it."""
    levels = [rule for rule in rules if rule.width >= rule.height and rule.width > _SAME_PT]
    uprights = [rule for rule in rules if rule.width < rule.height and rule.height > _SAME_PT]
    across: list[Box] = []
    for rule in sorted(levels, key=lambda rule: (round(rule.bottom), rule.left)):
        last = across[-1] if across else None
        if last is not None and abs(last.bottom - rule.bottom) <= 1 and rule.left <= last.right + _SAME_PT:
            across[-1] = Box(last.left, last.bottom, max(last.right, rule.right), last.top)
        else:
            across.append(rule)
    down: list[Box] = []
    for rule in sorted(uprights, key=lambda rule: (round(rule.left), rule.bottom)):
        last = down[-1] if down else None
        if last is not None and abs(last.left - rule.left) <= 1 and rule.bottom <= last.top + _SAME_PT:
            down[-1] = Box(last.left, last.bottom, last.right, max(last.top, rule.top))
        else:
            down.append(rule)
    return across, down


def _connected(levels: Sequence[Box], uprights: Sequence[Box]) -> list[list[Box]]:
    """Return the groups of rules that touch each other."""
    if len(levels) * len(uprights) > 1_000_000:
        return []
    group_of = list(range(len(levels) + len(uprights)))

    def root(number: int) -> int:
        while group_of[number] != number:
            group_of[number] = group_of[group_of[number]]
            number = group_of[number]
        return number

    for first, level in enumerate(levels):
        for second, upright in enumerate(uprights, start=len(levels)):
            touches_x = level.left - _SAME_PT <= upright.left <= level.right + _SAME_PT
            if touches_x and upright.bottom - _SAME_PT <= level.bottom <= upright.top + _SAME_PT:
                group_of[root(first)] = root(second)
    groups: dict[int, list[Box]] = {}
    for number, rule in enumerate([*levels, *uprights]):
        groups.setdefault(root(number), []).append(rule)
    return list(groups.values())


def _distinct(values: Iterable[float]) -> list[float]:
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > _SAME_PT:
            found.append(value)
    return found
