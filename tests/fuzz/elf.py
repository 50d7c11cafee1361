"""Damaged ELF files, handed to the reader of shared libraries."""

from __future__ import annotations

import random
from collections import Counter

from services.mesh.images.libraries import NotElf, of_distributions, read_dynamic


def fuzz_elf(num_inputs: int, draws: random.Random) -> Counter[str]:
    """Read damaged copies of a small real library; count what came of it. Whatever else than NotElf it raises ends the test."""
    paths = of_distributions(["crc32c"]).values()
    original = min((path.read_bytes() for path in paths), key=len)
    # The places that the reader looks at: headers, and the names somewhere behind them.
    (at,) = {original.find(b"libc.so.6")} - {-1}
    outcomes: Counter[str] = Counter()
    for _ in range(num_inputs):
        data = bytearray(original)
        for _ in range(draws.randint(1, 6)):
            kind = draws.random()
            if kind < 0.5:
                data[draws.randrange(min(1024, len(data)))] = draws.randrange(256)
            elif kind < 0.7:
                data[draws.randrange(len(data))] = draws.randrange(256)
            elif kind < 0.8:
                data[at + draws.randrange(-64, 64)] = draws.randrange(256)
            elif kind < 0.9:
                place = draws.randrange(0, min(1024, len(data)) - 8)
                data[place : place + 8] = draws.randrange(2**64).to_bytes(8, "little")
            else:
                del data[draws.randrange(1, len(data)) :]
                break
        try:
            read_dynamic(bytes(data))
        except NotElf:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    return outcomes
