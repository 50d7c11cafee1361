"""MovieLens-100K as live traffic: the events and films of the installed recbole package, overlaid user sessions, seeded candidates.

Nothing is downloaded and nothing of the data is kept in this repository. Knows nothing about the mesh.
"""

from __future__ import annotations

import csv
import importlib.resources
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.platform.errors import ConfigurationError
from services.common.ranker.overlay import overlay

NUM_NEGATIVES = 99
ACTIVE_USERS = 100
"""Sessions that are overlaid: people rated films in one sitting, one after the other."""


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating of 1 to 5 stars; `index` is its rank in the global order of time."""

    index: int
    user_id: str
    item_id: str
    stars: float
    time_s: int


@dataclass(frozen=True, slots=True)
class Film:
    """One film of the catalogue."""

    item_id: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimedRating:
    """A rating in a replay: when it happens, in seconds from the start, and which (user, original second) block it belongs to."""

    rating: Rating
    at_s: float
    block: int


def _rows(name: str) -> Iterator[dict[str, str]]:
    try:
        folder = importlib.resources.files("recbole")
    except ModuleNotFoundError as error:
        raise ConfigurationError("MovieLens-100K comes with the package recbole, which is not installed: run `make setup`") from error
    with (folder / "dataset_example" / "ml-100k" / name).open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {key.split(":")[0]: value for key, value in row.items()}


def load_ratings() -> list[Rating]:
    """Return the 100,000 ratings in the order of time; ties by user, then film, so that the order is one everywhere."""
    rows = [(int(float(row["timestamp"])), row["user_id"], row["item_id"], float(row["rating"])) for row in _rows("ml-100k.inter")]
    rows.sort(key=lambda row: (row[0], int(row[1]), int(row[2])))
    return [Rating(index, user, item, stars, time_s) for index, (time_s, user, item, stars) in enumerate(rows)]


def load_films() -> dict[str, Film]:
    """Return the 1,682 films by id; the dataset's genres are their categories."""
    films = {}
    for row in _rows("ml-100k.item"):
        year = f" ({row['release_year']})" if row["release_year"] else ""
        films[row["item_id"]] = Film(row["item_id"], row["movie_title"] + year, tuple(row["class"].split()))
    return films


def load_film_attributes() -> dict[str, dict[str, int | tuple[str, ...]]]:
    """Return what the dataset says of each film: `genres`, and `year` where it is known."""
    return {
        row["item_id"]: {
            "genres": tuple(row["class"].split()),
            **({"year": int(row["release_year"])} if row["release_year"].isdigit() else {}),
        }
        for row in _rows("ml-100k.item")
    }


def load_user_attributes() -> dict[str, dict[str, int | str]]:
    """Return what the dataset says of each user: `age`, `gender` (M or F) and `occupation`."""
    return {
        row["user_id"]: {"age": int(row["age"]), "gender": row["gender"], "occupation": row["occupation"]} for row in _rows("ml-100k.user")
    }


def split_by_time(ratings: Sequence[Rating], fraction: float) -> tuple[list[Rating], list[Rating]]:
    """Cut at `fraction` of the events; the cut moves forward until it splits no (user, second) block."""
    cut = round(len(ratings) * fraction)
    while 0 < cut < len(ratings) and _same_block(ratings[cut - 1], ratings[cut]):
        cut += 1
    return list(ratings[:cut]), list(ratings[cut:])


def _same_block(left: Rating, right: Rating) -> bool:
    return (left.user_id, left.time_s) == (right.user_id, right.time_s)


def overlaid_sessions(
    ratings: Sequence[Rating], *, active: int = ACTIVE_USERS, gap_cap_s: float = 20.0, seed: int = 0
) -> list[TimedRating]:
    """Overlay the sessions: `active` users at once, each in own order with own gaps, capped; a user who is done makes room for the next.

    See services.common.ranker.overlay. Months of original time become a busy service of two hours, which may then be sped up evenly.
    """
    order = overlay(
        [rating.user_id for rating in ratings], [rating.time_s for rating in ratings], active=active, gap_cap_s=gap_cap_s, seed=seed
    )
    return [TimedRating(ratings[place.event], place.at_s, place.block) for place in order]


class CandidateDrawer:
    """Draws the films shown beside a rated one: from those that the user has not rated YET, later ones included.

    Leaving out films that the user will rate later would leak the future: a learner remembers what it was shown in vain.
    """

    def __init__(self, item_ids: Sequence[str], seed: int) -> None:
        """Draw from `item_ids`; every draw depends on (seed, rating.index) and what the user has rated so far."""
        self._item_ids = list(item_ids)
        self._seed = seed
        self._rated: dict[str, set[str]] = defaultdict(set)

    def draw(self, rating: Rating, num_negatives: int = NUM_NEGATIVES) -> list[str]:
        """Return the rated film and up to `num_negatives` others in random order."""
        rng = np.random.default_rng((self._seed, rating.index))
        rated = self._rated[rating.user_id]
        others: list[str] = []
        for position in rng.permutation(len(self._item_ids)).tolist():
            item_id = self._item_ids[position]
            if item_id != rating.item_id and item_id not in rated:
                others.append(item_id)
                if len(others) == num_negatives:
                    break
        others.insert(int(rng.integers(len(others) + 1)), rating.item_id)
        return others

    def rated(self, rating: Rating) -> None:
        """Take note that the user has rated the film now."""
        self._rated[rating.user_id].add(rating.item_id)
