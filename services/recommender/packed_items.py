"""The items of an answer, serialised as the router passes them on: to the user and to exposures.v1 (PackedItems in the contract).

An answer of a hundred items is a hundred small messages. Built by protobuf in Python they cost more than their scores; here each is its own
bytes, put together from columns. What stands for an item in the Protocol Buffers wire format (tag, length, value) is written by hand, and
tests/unit/services/recommender/test_packed_items.py holds that protobuf reads from it what it was made of, over random answers.

Shapes: K items, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tunemesh.events.v1 import exposure_pb2
from tunemesh.recommender.v1 import recommender_service_pb2
from tunemesh.router.v1 import router_service_pb2

from services.recommender.core import Answer, RankedItems

# Tags: number of the field * 8 + kind of its value (2: bytes with a length before them, 5: four bytes).
_ITEMS_TAG = router_service_pb2.RecommendResponse.ITEMS_FIELD_NUMBER << 3 | 2
_ID_TAG, _SCORE_TAG, _TASK_SCORES_TAG, _REASON_TAG = 1 << 3 | 2, 2 << 3 | 5, 3 << 3 | 2, 4 << 3 | 2
_SCORE_BYTES = 5


def packed(answer: Answer, task_names: Sequence[str], schema_hash: str) -> recommender_service_pb2.PackedItems:
    """Return the items of an answer."""
    items = answer.items
    head = router_service_pb2.RecommendResponse(task_names=task_names).SerializeToString()
    exposed = exposure_pb2.Exposure(
        item_ids=items.item_ids,
        features_block=answer.features_block,
        schema_hash=schema_hash,
        # Without the ranker a list is sorted by something else, whose numbers would be taken for the model's.
        scores=[] if answer.version is None else items.scores_K.tolist(),
        reasons=list(map(",".join, items.reasons)),
    )
    shown = head + _items(items)
    return recommender_service_pb2.PackedItems(num_items=len(items), shown=shown, exposed=exposed.SerializeToString())


def _items(items: RankedItems) -> bytes:
    """Return `RecommendResponse.items`, one RankedItem after the other."""
    numbers, width = _numbers(items)
    before_item, before_id = _SHORT[_ITEMS_TAG], _SHORT[_ID_TAG]
    reasons_of: dict[tuple[str, ...], bytes] = {}
    parts: list[bytes] = []
    at = 0
    for item_id, reasons in zip(items.item_ids, items.reasons, strict=True):
        key = tuple(reasons)
        reason = reasons_of.get(key)
        if reason is None:
            reason = reasons_of[key] = b"".join(_before(_REASON_TAG, len(each)) + each for each in map(str.encode, key))
        name = item_id.encode()
        num_name = len(name)
        head = before_id[num_name] if num_name < _NUM_SHORT else _before(_ID_TAG, num_name)
        item = head + name + numbers[at : at + width] + reason
        num_item = len(item)
        parts += (before_item[num_item] if num_item < _NUM_SHORT else _before(_ITEMS_TAG, num_item), item)
        at += width
    return b"".join(parts)


def _numbers(items: RankedItems) -> tuple[bytes, int]:
    """Return the score and task scores of all items, one behind the other, and how many bytes an item has of them."""
    num_items, num_tasks = items.task_scores_KT.shape
    before_tasks = bytes([_TASK_SCORES_TAG]) + _length(4 * num_tasks) if num_tasks else b""
    start = _SCORE_BYTES + len(before_tasks)
    width = start + 4 * num_tasks
    columns = np.empty((num_items, width), np.uint8)
    columns[:, 0] = _SCORE_TAG
    columns[:, 1:_SCORE_BYTES] = np.ascontiguousarray(items.scores_K, "<f4").view(np.uint8).reshape(num_items, 4)
    columns[:, _SCORE_BYTES:start] = np.frombuffer(before_tasks, np.uint8)
    columns[:, start:] = np.ascontiguousarray(items.task_scores_KT, "<f4").view(np.uint8).reshape(num_items, 4 * num_tasks)
    return columns.tobytes(), width


def _before(tag: int, size: int) -> bytes:
    """Return what stands before a value of so many bytes."""
    return bytes([tag]) + _length(size)


def _length(size: int) -> bytes:
    """Return a length as the wire format has it: seven bits a byte, the lowest first, the highest bit saying that more follow."""
    found = bytearray()
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


# By tag and length: what stands before nearly every value.
_NUM_SHORT = 512
_SHORT = {tag: [_before(tag, size) for size in range(_NUM_SHORT)] for tag in (_ITEMS_TAG, _ID_TAG)}
