"""Item states and popularity counts as they were packed before they said under which half-lives they were made."""

from __future__ import annotations

import struct

from services.common.ranker.states import ItemState


def item_bytes(state: ItemState) -> bytes:
    """Pack a state that has been written to at least once."""
    numbers = [state.clock, *state.tally, state.value_sq_sum, *(number for tally in state.decayed for number in tally)]
    return struct.pack(f"<q{len(numbers)}d", state.last_offset, *numbers)


def popularity_bytes(count: float, clock: float) -> bytes:
    """Pack one count."""
    return struct.pack("<dd", count, clock)
