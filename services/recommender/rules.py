"""Business rules: what is never recommended, and how alike the top of a list may be. Pure.

Knows nothing about scores: it gets positions that are already sorted, best first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.platform.errors import ConfigurationError


class _Exclude(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    items: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


class _Diversity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    max_per_category: int = Field(ge=1)
    within_top: int = Field(ge=1)


class _RulesFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = Field(ge=1, le=1)
    exclude: _Exclude = _Exclude()
    diversity: _Diversity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What every answer obeys."""

    exclude_items: frozenset[str] = frozenset()
    """Items that are never returned, even when the client names them as candidates."""
    exclude_categories: frozenset[str] = frozenset()
    """An item with one of these categories is never returned."""
    max_per_category: int = 0
    """Most items that share a category among the first `within_top` of an open recommendation; 0: no limit."""
    within_top: int = 0

    @classmethod
    def parse(cls, raw: object, *, source: str) -> Rules:
        """Check a parsed rules file.

        Raises:
            ConfigurationError: a key is unknown or a value is out of range; names the source and the key.
        """
        try:
            file = _RulesFile.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "(top)"
            raise ConfigurationError(f"rules {source}: key {key}: {first['msg']}") from error
        diversity = file.diversity
        return cls(
            exclude_items=frozenset(file.exclude.items),
            exclude_categories=frozenset(file.exclude.categories),
            max_per_category=diversity.max_per_category if diversity else 0,
            within_top=diversity.within_top if diversity else 0,
        )

    @property
    def exclude_any(self) -> bool:
        """Whether there is an item that may not be returned."""
        return bool(self.exclude_items or self.exclude_categories)

    def allows(self, item_id: str, categories: Sequence[str]) -> bool:
        """Whether the item may be returned at all."""
        return item_id not in self.exclude_items and (not self.exclude_categories or self.exclude_categories.isdisjoint(categories))


def diversified(order: Sequence[int], categories: Sequence[Sequence[str]], rules: Rules) -> list[int]:
    """Return `order` with at most `max_per_category` items of one category among its first `within_top`.

    An item counts for each of its categories. Items that are held back follow in their old order; when too few others exist to
    fill the top they come back, best first, since a short list is worse than an even one.

    Args:
        order: positions, best first.
        categories: per position, that item's categories.
    """
    if not rules.max_per_category:
        return list(order)
    shown: Counter[str] = Counter()
    top: list[int] = []
    rest: list[int] = []
    for position in order:
        if len(top) < rules.within_top and all(shown[name] < rules.max_per_category for name in categories[position]):
            shown.update(categories[position])
            top.append(position)
        else:
            rest.append(position)
    return top + rest
