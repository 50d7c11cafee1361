"""What a tune is trained on: demonstrations of the task, and replay of context-answering examples in every batch. Pure.

A tune on the demonstrations alone answers questions about a given context with the facts that it learned, and forgets to read. A share
of each batch is therefore made of questions with the context that answers them (rehearsal: Robins 1995).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from services.common.events.chat import Message
from services.common.platform.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """A prompt and the answer to learn; loss is taken on the answer only."""

    messages: tuple[Message, ...]
    answer: str
    is_replay: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples, demonstrations first, and the batches drawn from them.

    Attributes:
        examples: what can be drawn.
        batches: row numbers of `examples`, one tuple a step; none is empty.
        content_hash: "sha256:…" of examples and batches as they were drawn: equal hashes are equal trainings, but for hyper-parameters
            (which decide what is too long) and seed.
    """

    examples: tuple[TrainingExample, ...]
    batches: tuple[tuple[int, ...], ...]
    content_hash: str

    @property
    def replay_share(self) -> float:
        """Share of the drawn rows that are replay; 0 when nothing is drawn."""
        drawn = [self.examples[row].is_replay for batch in self.batches for row in batch]
        return sum(drawn) / len(drawn) if drawn else 0.0

    @property
    def num_demonstrations(self) -> int:
        """How many different demonstrations are drawn."""
        return sum(not self.examples[row].is_replay for row in {row for batch in self.batches for row in batch})

    def without(self, rows: Collection[int]) -> Dataset:
        """Return the same drawing without some rows of `examples`."""
        return replace(self, batches=batches_without(self.batches, rows))


def make_dataset(
    demonstrations: Sequence[TrainingExample],
    replay: Sequence[TrainingExample],
    *,
    num_steps: int,
    batch_size: int,
    replay_share: float,
    seed: int,
) -> Dataset:
    """Return the batches: each holds `round(batch_size · replay_share)` replay rows, and demonstrations for the rest.

    Both kinds are drawn in passes: every row once, in a fresh random order, before any comes again.

    Args:
        demonstrations, replay: in any order; the outcome depends on it, so pass them sorted.
        num_steps, batch_size: > 0.
        replay_share: 0 to below 1.
        seed: of the order.
    Raises:
        InvalidInput: there are no demonstrations, or replay is asked for and there is none.
    """
    if not demonstrations:
        raise InvalidInput("there are no demonstrations to train on")
    num_replay = round(batch_size * replay_share)
    if num_replay >= batch_size:
        raise InvalidInput(f"a replay share of {replay_share:g} leaves no room for demonstrations in a batch of {batch_size}")
    if num_replay and not replay:
        raise InvalidInput(
            "there are no replay examples: the catalogue has no item to ask about, there is no replay file (TASK.replay.jsonl beside the "
            "evaluation file), and no demonstration came with passages"
        )
    examples = (*demonstrations, *replay)
    draw_demonstrations = _Passes(range(len(demonstrations)), random.Random(f"{seed}/demonstrations"))
    draw_replay = _Passes(range(len(demonstrations), len(examples)), random.Random(f"{seed}/replay"))
    batches = tuple((*draw_demonstrations.draw(batch_size - num_replay), *draw_replay.draw(num_replay)) for _ in range(num_steps))
    return Dataset(
        examples=examples,
        batches=batches,
        content_hash=_hash(examples, batches),
    )


def batches_without(batches: Sequence[tuple[int, ...]], rows: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """Return the batches without some rows; a batch of which nothing stays is left out, the others become smaller."""
    if not rows:
        return tuple(batches)
    kept = (tuple(row for row in batch if row not in rows) for batch in batches)
    return tuple(batch for batch in kept if batch)


class _Passes:
    """Draws rows without repetition until all were drawn, then begins anew."""

    def __init__(self, rows: Sequence[int], rng: random.Random) -> None:
        self._rows, self._rng = rows, rng
        self._left: list[int] = []

    def draw(self, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count:
            if not self._left:
                self._left = list(self._rows)
                self._rng.shuffle(self._left)
            drawn.append(self._left.pop())
        return drawn


def _hash(examples: Sequence[TrainingExample], batches: Sequence[Sequence[int]]) -> str:
    rows = [[[[turn.role, turn.content] for turn in example.messages], example.answer, example.is_replay] for example in examples]
    text = json.dumps([rows, batches], ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def steps_for(num_demonstrations: int, *, per_batch: int, num_passes: float, least: int, most: int) -> int:
    """Return how many batches show each demonstration about `num_passes` times, within [least, most].

    Args:
        num_demonstrations: there are.
        per_batch: demonstrations in one batch.
        num_passes: five teach the facts of the demo's help desk (60 demonstrations, 6 to a batch, 50 steps).
        least, most: bounds.
    """
    return max(least, min(most, math.ceil(num_passes * num_demonstrations / per_batch)))
