"""Context-answering examples for replay: questions about catalogue items, the passages to read, and the answers. Pure.

The answers are facts of the given passages, never of the world, so that what is rehearsed is reading. They are asked in the language of the
task (replay_words.py). Deterministic by seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from services.common.events.catalog import CatalogItem
from services.common.events.chat import Passage
from services.common.language.evaluation import Evaluation
from services.common.language.items import passage_of, spoken_title, words_of, year_of
from services.tuner.replay_words import Wordings, wordings_of

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


def replay_from_items(items: Sequence[CatalogItem], *, count: int, seed: int, language: str = "en") -> list[ReplayExample]:
    """Return up to `count` examples, each about another item, with `MIN_PASSAGES` to `MAX_PASSAGES` passages (fewer in a poor
    catalogue) in random order.

    Args:
        items: in any order; items that have neither a category nor an attribute nor a year are only used as company.
        count: at most this many.
        seed: of items, phrasings and company.
        language: of the questions (replay_words.language_of).
    """
    rng = random.Random(f"{seed}/replay-items")
    pool = sorted(items, key=lambda item: item.item_id)
    subjects = [item for item in pool if item.title.strip() and (item.categories or item.attributes or year_of(item.title))]
    of_works = 2 * sum(bool(year_of(item.title)) for item in subjects) > len(subjects)
    wordings = wordings_of(language, of_works=of_works)
    rng.shuffle(subjects)
    examples = []
    for subject in subjects[:count]:
        others = rng.sample(pool, min(len(pool), 4 * MAX_PASSAGES))
        makers = [*_MAKERS, *(_ATTRIBUTE_MAKERS if subject.attributes else ())]
        rng.shuffle(makers)
        made = (make(subject, others, wordings, rng) for make in makers)
        example = next((example for example in made if example is not None), None)
        examples += [] if example is None else [example]
    return examples


Maker = Callable[[CatalogItem, Sequence[CatalogItem], Wordings, random.Random], ReplayExample | None]


def _categories(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    if not subject.categories:
        return None
    name = spoken_title(subject.title)
    question = rng.choice(words.categories).format(name=name, label=_CATEGORIES)
    answer = words.has.format(name=name, value=words.comma.join(subject.categories))
    return _example(question, subject, _company(subject, others, {name}), answer, rng)


def _year(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    year = year_of(subject.title)
    if not year:
        return None
    name = spoken_title(subject.title)
    question = rng.choice(words.year).format(name=name)
    return _example(question, subject, _company(subject, others, {name}), words.is_from.format(name=name, value=year), rng)


def _attribute(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    said = _said(subject)
    if not said:
        return None
    name, (label, value) = spoken_title(subject.title), rng.choice(said)
    question = rng.choice(words.attribute).format(name=name, label=_label(label))
    return _example(question, subject, _company(subject, others, {name}), words.has.format(name=name, value=value.rstrip(".")), rng)


def _which_category(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    if not subject.categories:
        return None
    category, name = rng.choice(subject.categories), spoken_title(subject.title)
    company = [other for other in _company(subject, others, {name}) if category not in other.categories]
    if not company:
        return None
    question = rng.choice(words.which_category).format(value=category, label=_CATEGORIES)
    return _example(question, subject, company, words.in_category.format(name=name, value=category), rng)


def _which_year(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    year, name = year_of(subject.title), spoken_title(subject.title)
    company = [other for other in _company(subject, others, {name}) if year_of(other.title) != year]
    if not year or not company:
        return None
    question = rng.choice(words.which_year).format(value=year)
    return _example(question, subject, company, words.is_from.format(name=name, value=year), rng)


def _which_attribute(subject: CatalogItem, others: Sequence[CatalogItem], words: Wordings, rng: random.Random) -> ReplayExample | None:
    said = _said(subject)
    if not said:
        return None
    (label, value), name = rng.choice(said), spoken_title(subject.title)
    company = [other for other in _company(subject, others, {name}) if (label, value) not in words_of(other.attributes)]
    if not company:
        return None
    question = rng.choice(words.which_attribute).format(label=_label(label), value=value.rstrip("."))
    return _example(question, subject, company, words.which.format(name=name), rng)


# Mostly what an item is, seldom which item it is: the latter is hard for a small model, and little is learned from it.
_MAKERS: tuple[Maker, ...] = (_categories, _categories, _categories, _year, _year, _which_category, _which_year)
_ATTRIBUTE_MAKERS: tuple[Maker, ...] = (_attribute, _attribute, _attribute, _which_attribute)
_CATEGORIES = "Categories"
_MAX_VALUE_CHARS = 200


def _said(subject: CatalogItem) -> list[tuple[str, str]]:
    """The attributes that can be asked for: a description is a text, not a value."""
    said = words_of(subject.attributes)
    return [(label, value) for label, value in said if label.strip() and 1 <= len(value.strip(". ")) <= _MAX_VALUE_CHARS]


def _label(name: str) -> str:
    return name.replace("_", " ")


def _company(subject: CatalogItem, others: Sequence[CatalogItem], names: Collection[str]) -> list[CatalogItem]:
    return [other for other in others if other.item_id != subject.item_id and spoken_title(other.title) not in names]


def _example(question: str, subject: CatalogItem, company: Sequence[CatalogItem], answer: str, rng: random.Random) -> ReplayExample:
    shown = [subject, *company[: rng.randint(MIN_PASSAGES - 1, MAX_PASSAGES - 1)]]
    rng.shuffle(shown)
    return ReplayExample(question=question, passages=tuple(passage_of(item) for item in shown), answer=answer)
