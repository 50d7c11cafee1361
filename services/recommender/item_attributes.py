"""What the declared features make of the catalogue's items, each computed when its item changes. Knows nothing about Kafka."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from services.common.events.catalog import CatalogItem
from services.common.ranker.declared.item_parts import ItemParts
from services.common.ranker.declared.plan import Attributes, Part, Plan

_log = logging.getLogger(__name__)


class ItemAttributes:
    """The items' parts of a plan. One thread writes, any may read.

    An attribute that has another type than the features read is left out: the item is ranked without it, as one that never had it.
    """

    def __init__(self, plan: Plan) -> None:
        """`plan` is the spec's. Attributes: `num_unfit` counts attributes that were left out."""
        self._plan, self._parts = plan, ItemParts(plan)
        self.num_unfit = 0

    def put(self, items: Mapping[str, CatalogItem]) -> None:
        """Take items in, by item id."""
        if self._plan.features and items:
            self._parts.put({item_id: self._read(item_id, item) for item_id, item in items.items()})

    def remove(self, item_id: str) -> None:
        """Forget an item."""
        self._parts.remove(item_id)

    def part(self, item_ids: Sequence[str]) -> Part:
        """Return what the plan computes of each of N items alone."""
        return self._parts.part(item_ids)

    def _read(self, item_id: str, item: CatalogItem) -> Attributes:
        """Return the attributes that features may read: the item's own, its title and its categories."""
        attributes = {"title": item.title, "categories": item.categories, **item.attributes}
        unfit = self._plan.faults("item", attributes)
        for field, what in unfit.items():
            self.num_unfit += 1
            _log.warning("catalogue: item %r is ranked without its attribute %r: %s", item_id[:80], field, what)
        return {field: value for field, value in attributes.items() if field not in unfit}
