"""The online feature columns: one row a column, its name and how it is computed. Their names, in this order, enter the schema hash.

A user column is computed from a UserView, an item column from an ItemView. To add one, add a row (CONTRIBUTING.md shows it); whoever
changes what a column of the same name means raises FEATURE_CODE_VERSION in feature_spec.py. Values are scaled to about -3..3.
Knows neither the feature spec nor where the counts come from.
Shapes: N items, H half-lives, C different categories of the N items, S categories of all N items one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.ranker.tallies import EMPTY_TALLY, NEUTRAL_VALUE, Float64Array, ItemMatrix, Tally

# Pseudo-counts that pull small samples towards their parent mean.
MEAN_PRIOR = 5.0
CATEGORY_PRIOR = 4.0

Int64Array = npt.NDArray[np.int64]

_HALF_LIFE = "{half_life}"


@dataclass(frozen=True, slots=True)
class UserView:
    """One user beside everyone. Opinions are on the 0..1 scale. Build it with `of`."""

    tally: Tally
    value_sq_sum: float
    history_values: Sequence[float]
    """Of the user's latest items, newest first."""
    categories: Mapping[str, Tally]
    """The user's acts by category."""
    everyone: Tally
    """The acts of the whole stream."""
    everyone_by_category: Mapping[str, Tally]
    prior: float
    """The mean opinion of the whole stream."""
    mean: float
    """The user's mean opinion, pulled towards `prior`."""

    @classmethod
    def of(
        cls,
        tally: Tally,
        value_sq_sum: float,
        history_values: Sequence[float],
        categories: Mapping[str, Tally],
        everyone: Tally,
        everyone_by_category: Mapping[str, Tally],
    ) -> UserView:
        """Return the view of these counts; a user never seen before has EMPTY_TALLY and nothing else."""
        prior = (everyone.value_sum + NEUTRAL_VALUE) / (everyone.rated + 1.0)
        mean = smoothed(tally.value_sum, tally.rated, prior)
        return cls(tally, value_sq_sum, history_values, categories, everyone, everyone_by_category, prior, mean)


@dataclass(frozen=True, slots=True)
class ItemView:
    """The N items of one request beside everyone and beside the user. Build it with `of`."""

    user: UserView
    items: ItemMatrix
    count_N: Float64Array
    rated_N: Float64Array
    mean_N: Float64Array
    """The item's mean opinion, pulled towards the stream's."""
    spread_N: Float64Array
    """Standard deviation of the opinions."""
    log_share_N: Float64Array
    """Logarithm of the item's share of all acts, in thousandths."""
    log_rate_NH: Float64Array
    """The same of the recent acts."""
    recent_mean_NH: Float64Array
    """Mean of the recent opinions, pulled towards the item's mean."""
    num_categories_N: Int64Array
    tastes: Tastes

    @classmethod
    def of(cls, user: UserView, items: ItemMatrix, categories: Sequence[Sequence[str]], half_lives_events: Sequence[float]) -> ItemView:
        """Return the view of N items with their `categories`, `half_lives_events` being those of `items.decayed_NH3`."""
        count_N, rated_N, value_sum_N = items.tally_N3.T
        mean_N = (value_sum_N + MEAN_PRIOR * user.prior) / (rated_N + MEAN_PRIOR)
        raw_mean_N = value_sum_N / np.maximum(rated_N, 1.0)
        variance_N = np.maximum(items.value_sq_sum_N / np.maximum(rated_N, 1.0) - raw_mean_N**2, 0.0)
        half_lives_H = np.asarray(half_lives_events)
        # Events that the decayed counters can have seen: saturates at half_life / ln 2, smaller while the stream is young.
        window_H = half_lives_H / math.log(2.0) * (1.0 - np.exp2(-user.everyone.acts / half_lives_H)) + 1.0
        # Shares are in units of a thousandth of the stream; the pseudo-share of 0.1 keeps logarithms finite.
        share_N = 1e3 * count_N / (user.everyone.acts + 1.0) + 0.1
        rate_NH = 1e3 * items.decayed_NH3[:, :, 0] / window_H + 0.1
        num_categories_N = np.fromiter(map(len, categories), dtype=np.int64, count=len(categories))
        return cls(
            user=user,
            items=items,
            count_N=count_N,
            rated_N=rated_N,
            mean_N=mean_N,
            spread_N=np.sqrt(variance_N),
            log_share_N=np.log(share_N),
            log_rate_NH=np.log(rate_NH),
            recent_mean_NH=(items.decayed_NH3[:, :, 2] + MEAN_PRIOR * mean_N[:, None]) / (items.decayed_NH3[:, :, 1] + MEAN_PRIOR),
            num_categories_N=num_categories_N,
            tastes=Tastes.of(user, categories, num_categories_N),
        )


@dataclass(frozen=True, slots=True)
class Tastes:
    """What the user makes of the categories of N items; zeros for items without categories. Build it with `of`."""

    value_N: Float64Array
    """Mean over the item's categories of the user's opinion of them beside the user's own mean, times 4."""
    lift_mean_N: Float64Array
    """How much oftener than everyone the user chooses them (logarithm): mean over the item's categories."""
    new_share_N: Float64Array
    """Share of the item's categories of which the user has chosen nothing yet."""
    lift_max_N: Float64Array
    """As `lift_mean_N`, but the largest over the item's categories."""

    @classmethod
    def of(cls, user: UserView, categories: Sequence[Sequence[str]], counts_N: Int64Array) -> Tastes:
        """Return the tastes for N items with these categories; `counts_N` says how many each has."""
        names = list(set(chain.from_iterable(categories)))
        row_of = dict(zip(names, range(len(names)), strict=True))
        flat_S = np.fromiter(map(row_of.__getitem__, chain.from_iterable(categories)), dtype=np.int64)
        columns_4N = np.zeros((4, len(categories)))
        if len(flat_S):
            taste_S3 = np.asarray(_tastes(user, names))[flat_S]
            filled_N = counts_N > 0
            # Where each item's stretch of the flat list begins; items without categories have no stretch.
            starts = (np.cumsum(counts_N) - counts_N)[filled_N]
            means = np.add.reduceat(taste_S3, starts, axis=0) / counts_N[filled_N, None]
            columns_4N[:3, filled_N] = means.T
            columns_4N[3, filled_N] = np.maximum.reduceat(taste_S3[:, 1], starts)
        return cls(*columns_4N)


def smoothed(value_sum: float, rated: float, prior: float) -> float:
    """Return the mean of `rated` opinions, pulled towards `prior` by MEAN_PRIOR pseudo-opinions."""
    return (value_sum + MEAN_PRIOR * prior) / (rated + MEAN_PRIOR)


def _tastes(user: UserView, names: Sequence[str]) -> list[tuple[float, float, float]]:
    """Return per category: the opinion beside the own mean, how much oftener than everyone the user chooses it (log), 1 if it is new."""
    mean, acts, everyone_acts = user.mean, user.tally.acts + CATEGORY_PRIOR, user.everyone.acts + 2.0
    mine_of, everyone_of = user.categories, user.everyone_by_category
    tastes = []
    for name in names:
        mine_acts, mine_rated, mine_sum = mine_of.get(name, EMPTY_TALLY)
        share_all = (everyone_of.get(name, EMPTY_TALLY).acts + 1.0) / everyone_acts
        share_mine = (mine_acts + CATEGORY_PRIOR * share_all) / acts
        value = (mine_sum - mine_rated * mean) / (mine_rated + CATEGORY_PRIOR)
        tastes.append((4.0 * value, math.log(share_mine / share_all), 1.0 if mine_acts == 0 else 0.0))
    return tastes


def _spread(user: UserView) -> float:
    tally = user.tally
    variance = max(0.0, user.value_sq_sum / tally.rated - (tally.value_sum / tally.rated) ** 2) if tally.rated else 0.0
    return math.sqrt(variance)


def _mean_of_latest(user: UserView, most: int) -> float:
    latest = user.history_values[:most]
    return smoothed(sum(latest), len(latest), user.prior)


# What columns are made from: `feedback:` fields of feedback.v1, `item:` fields of catalog.v1.
_ACTS = ("feedback:kind",)
_OPINIONS = (*_ACTS, "feedback:value")
_CATEGORIES = ("item:categories",)


class UserColumn(NamedTuple):
    """One number about the user."""

    name: str
    of: Callable[[UserView], float]
    reads: tuple[str, ...] = _OPINIONS
    """Fields that it is made from; see services.common.ranker.lineage."""


class ItemColumn(NamedTuple):
    """One number (or truth) about each of the N items: `of` returns [N].

    A name with {half_life} in it stands for one column a half-life of the spec, shortest first: `of` returns [N, H] then.
    """

    name: str
    of: Callable[[ItemView], npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_]]
    reads: tuple[str, ...] = _OPINIONS
    """Fields that it is made from; see services.common.ranker.lineage."""
    is_of_pair: bool = False
    """Whether another user's number for the same item is another one."""

    def names(self, half_lives_events: Sequence[float]) -> list[str]:
        """Return the names of the columns that it stands for."""
        if _HALF_LIFE not in self.name:
            return [self.name]
        return [self.name.replace(_HALF_LIFE, f"{half_life:g}") for half_life in half_lives_events]


USER_COLUMNS: tuple[UserColumn, ...] = (
    UserColumn("log_count", lambda user: 0.25 * math.log1p(user.tally.acts), _ACTS),
    UserColumn("mean", lambda user: 4.0 * (user.mean - user.prior)),
    UserColumn("mean_last_5", lambda user: 4.0 * (_mean_of_latest(user, 5) - user.prior)),
    UserColumn("mean_history", lambda user: 4.0 * (_mean_of_latest(user, len(user.history_values)) - user.prior)),
    UserColumn("spread", lambda user: 4.0 * _spread(user)),
    UserColumn("is_new", lambda user: 1.0 if user.tally.acts == 0 else 0.0, _ACTS),
    UserColumn("rated_share", lambda user: user.tally.rated / user.tally.acts if user.tally.acts else 0.0, _ACTS),
)

ITEM_COLUMNS: tuple[ItemColumn, ...] = (
    ItemColumn("log_count", lambda view: 0.25 * np.log1p(view.count_N), _ACTS),
    ItemColumn("log_share", lambda view: 0.5 * view.log_share_N, _ACTS),
    ItemColumn("mean", lambda view: 4.0 * (view.mean_N - view.user.prior)),
    ItemColumn("spread", lambda view: 4.0 * view.spread_N),
    ItemColumn("log_rate_{half_life}", lambda view: 0.5 * view.log_rate_NH, _ACTS),
    ItemColumn("mean_{half_life}", lambda view: 4.0 * (view.recent_mean_NH - view.user.prior)),
    ItemColumn("trend_{half_life}", lambda view: 0.5 * (view.log_rate_NH - view.log_share_N[:, None]), _ACTS),
    ItemColumn("expected_value", lambda view: 4.0 * (view.mean_N + view.user.mean - 2.0 * view.user.prior), is_of_pair=True),
    ItemColumn("category_value", lambda view: view.tastes.value_N, (*_OPINIONS, *_CATEGORIES), is_of_pair=True),
    ItemColumn("category_lift_mean", lambda view: view.tastes.lift_mean_N, (*_ACTS, *_CATEGORIES), is_of_pair=True),
    ItemColumn("category_lift_max", lambda view: view.tastes.lift_max_N, (*_ACTS, *_CATEGORIES), is_of_pair=True),
    ItemColumn("category_new_share", lambda view: view.tastes.new_share_N, (*_ACTS, *_CATEGORIES), is_of_pair=True),
    ItemColumn("num_categories", lambda view: 0.25 * view.num_categories_N, _CATEGORIES),
    ItemColumn("is_new", lambda view: view.count_N == 0, _ACTS),
)


def user_names() -> tuple[str, ...]:
    """Return the names of the user columns, in order."""
    return tuple(column.name for column in USER_COLUMNS)


def item_names(half_lives_events: Sequence[float]) -> tuple[str, ...]:
    """Return the names of the item columns, in order; half-lives are written as in log_rate_500."""
    return tuple(name for column in ITEM_COLUMNS for name in column.names(half_lives_events))
