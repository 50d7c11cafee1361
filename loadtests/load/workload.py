"""What the calls ask: users, candidates and questions, drawn from MovieLens with a seed. Pure but for reading the data set's package."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from loadtests.movielens import Film

_ZIPF_EXPONENT = 0.9
_QUESTIONS = (
    "In what year did {title} come out?",
    "What kind of film is {title}?",
    "Tell me in one sentence what the catalogue says about {title}.",
    "Is {title} a comedy?",
)


class Workload:
    """Draws requests. A few items and users are asked for often and many seldom (Zipf), as in a shop. Not safe for threads."""

    def __init__(self, films: Sequence[Film], *, num_users: int, num_candidates: int, seed: int) -> None:
        """Draw from so many users ("load-0" …) and from `films`, which must have at least `num_candidates`."""
        if num_candidates > len(films):
            raise ValueError(f"{num_candidates} candidates cannot be drawn from {len(films)} films")
        self._films, self._num_users, self._num_candidates = list(films), num_users, num_candidates
        self._source = random.Random(seed)
        self._source.shuffle(self._films)
        self._user_weights = _zipf(num_users)
        self._film_weights = _zipf(len(self._films))

    def user(self) -> str:
        """Return a user id."""
        return f"load-{self._source.choices(range(self._num_users), cum_weights=self._user_weights)[0]}"

    def candidates(self) -> list[str]:
        """Return distinct item ids; empty when none are to be named, so that the mesh recalls items itself."""
        return [film.item_id for film in self._source.sample(self._films, self._num_candidates)]

    def liking(self) -> float:
        """Return how well a user likes an answer, 0 to 1; no two are alike."""
        return self._source.random()

    def question(self) -> str:
        """Return a question about one film."""
        film = self._source.choices(self._films, cum_weights=self._film_weights)[0]
        return self._source.choice(_QUESTIONS).format(title=film.title)


def _zipf(count: int) -> list[float]:
    """Return the cumulative weights of ranks 1 to `count`."""
    return list(accumulate(rank**-_ZIPF_EXPONENT for rank in range(1, count + 1)))
