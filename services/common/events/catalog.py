"""Items of the catalogue, and what a record of catalog.v1 says of one. Pure, so cores may use it; `wire.catalog` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.events.attributes import Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogItem:
    """One item.

    Attributes:
        item_id: its owner's id.
        title: its name; may be empty.
        categories: e.g. genres.
        attributes: by name, sorted.
        updated_at_ms: Unix milliseconds of its last change; 0 when its owner does not say.
    """

    item_id: str
    title: str = ""
    categories: tuple[str, ...] = ()
    attributes: Attributes = field(default_factory=dict)
    updated_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeletedItem:
    """The item is no longer in the catalogue."""

    item_id: str


CatalogChange = CatalogItem | DeletedItem
