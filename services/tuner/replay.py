"""Context-answering examples for replay: questions about catalogue items, the passages to read, and the answers. Pure.

The answers are facts of the given passages, never of the world, so that what is rehearsed is reading. Deterministic by seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from services.common.events.catalog import CatalogItem
from services.common.events.chat import Passage
from services.common.language.evaluation import Evaluation
from services.common.language.items import passage_of, spoken_title, year_of

MIN_PASSAGES, MAX_PASSAGES = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayExample:
    """A question, the context that answers it, and the answer."""

    question: str
    passages: tuple[Passage, ...]
    answer: str


def without_evaluated(items: Sequence[CatalogItem], evaluation: Evaluation) -> list[CatalogItem]:
    """Return the items whose title no passage of the context slice has: what is judged must not have been trained on."""
    evaluated = {passage.title for question in evaluation.context_slice for passage in question.context}
    return [item for item in items if item.title not in evaluated]


def replay_from_items(items: Sequence[CatalogItem], *, count: int, seed: int) -> list[ReplayExample]:
    """Return up to `count` examples, each about another item, with `MIN_PASSAGES` to `MAX_PASSAGES` passages (fewer in a poor
    catalogue) in random order.

    Args:
        items: in any order; items that have neither a category nor a year are only used as company.
        count: at most this many.
        seed: of items, phrasings and company.
    """
    rng = random.Random(f"{seed}/replay-items")
    pool = sorted(items, key=lambda item: item.item_id)
    subjects = [item for item in pool if item.title.strip() and (item.categories or year_of(item.title))]
    rng.shuffle(subjects)
    examples = []
    for subject in subjects[:count]:
        others = rng.sample(pool, min(len(pool), 4 * MAX_PASSAGES))
        makers = list(_MAKERS)
        rng.shuffle(makers)
        examples.append(next(made for make in makers if (made := make(subject, others, rng)) is not None))
    return examples


Maker = Callable[[CatalogItem, Sequence[CatalogItem], random.Random], ReplayExample | None]


def _categories(subject: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> ReplayExample | None:
    if not subject.categories:
        return None
    name = spoken_title(subject.title)
    question = rng.choice(
        (
            f"Which categories does {name} have?",
            f"Which genres does {name} belong to?",
            f"What kind of title is {name}, by genre?",
            f"Tell me the genre of {name}.",
            f"Under which categories do you list {name}?",
        )
    )
    answer = f"{name}: {', '.join(subject.categories)}."
    return _example(question, subject, _company(subject, others, {name}), answer, rng)


def _year(subject: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> ReplayExample | None:
    year = year_of(subject.title)
    if not year:
        return None
    name = spoken_title(subject.title)
    question = rng.choice(
        (
            f"From which year is {name}?",
            f"When did {name} come out?",
            f"What year was {name} released?",
            f"How old is {name}, which year is it from?",
        )
    )
    return _example(question, subject, _company(subject, others, {name}), f"{name} is from {year}.", rng)


def _which_category(subject: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> ReplayExample | None:
    if not subject.categories:
        return None
    category = rng.choice(subject.categories)
    company = [other for other in _company(subject, others, {spoken_title(subject.title)}) if category not in other.categories]
    if not company:
        return None
    question = rng.choice(
        (
            f"Which of these is listed under {category}?",
            f"Which title has the category {category}?",
            f"I want something from {category}. Which one is it?",
        )
    )
    return _example(question, subject, company, f"{spoken_title(subject.title)} is listed under {category}.", rng)


def _which_year(subject: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> ReplayExample | None:
    year = year_of(subject.title)
    company = [other for other in _company(subject, others, {spoken_title(subject.title)}) if year_of(other.title) != year]
    if not year or not company:
        return None
    question = rng.choice((f"Which of these is from {year}?", f"Which title came out in {year}?", f"Name the one that is from {year}."))
    return _example(question, subject, company, f"{spoken_title(subject.title)} is from {year}.", rng)


# Mostly what an item is, seldom which item it is: the latter is hard for a small model, and little is learned from it.
_MAKERS: tuple[Maker, ...] = (_categories, _categories, _categories, _year, _year, _which_category, _which_year)


def _company(subject: CatalogItem, others: Sequence[CatalogItem], names: Collection[str]) -> list[CatalogItem]:
    return [other for other in others if other.item_id != subject.item_id and spoken_title(other.title) not in names]


def _example(question: str, subject: CatalogItem, company: Sequence[CatalogItem], answer: str, rng: random.Random) -> ReplayExample:
    shown = [subject, *company[: rng.randint(MIN_PASSAGES - 1, MAX_PASSAGES - 1)]]
    rng.shuffle(shown)
    return ReplayExample(question=question, passages=tuple(passage_of(item) for item in shown), answer=answer)
