"""The help desk of the demo: what it teaches, what it asks to see whether it was learned, and the tuner's evaluation file.

The demonstrations and the held-out paraphrases share no question; the questions about given context are of films of the catalogue, in
wordings of their own. Knows nothing of the mesh.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtests.movielens import Film
from services.common.events.catalog import CatalogItem
from services.common.events.chat import Passage
from services.common.language.evaluation import Question, is_right, parse_evaluation
from services.common.language.items import passage_of, spoken_title, year_of
from services.common.language.similar_questions import SimilarQuestions

TASK = "helpdesk"
NUM_CONTEXT_QUESTIONS = 300
"""The gate stops asking when it knows enough. More would leave too few films to rehearse reading with."""

_FILE = Path(__file__).with_name("helpdesk.yaml")
_SEED = 7


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question and the answer that a person would have given."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the context that is given along (none: empty), and the answer as it should be (empty: any that is right)."""

    question: str
    accept: tuple[tuple[str, ...], ...]
    context: tuple[Passage, ...] = ()
    reject: tuple[str, ...] = ()
    answer: str = ""

    def is_right(self, answer: str) -> bool:
        """Say whether the answer says what it must, and nothing that it must not."""
        return is_right(answer, self.accept, self.reject, question=self.question)


@dataclass(frozen=True, slots=True)
class HelpDesk:
    """What helpdesk.yaml says. `held_out` is asked by the demo and by the gate, `judged` by the gate alone."""

    demonstrations: tuple[Lesson, ...]
    held_out: tuple[Asked, ...]
    judged: tuple[Asked, ...]


def load(path: Path = _FILE) -> HelpDesk:
    """Return the lessons and the held-out questions.

    Raises:
        ValueError: a held-out question is among the lessons.
    """
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))["facts"]
    lessons = [Lesson(question, fact["answer"]) for fact in facts for question in fact["demonstrations"]]
    held_out, judged = (_asked_of(facts, key) for key in ("paraphrases", "more_paraphrases"))
    known = SimilarQuestions(asked.question for asked in (*held_out, *judged))
    repeated = [lesson.question for lesson in lessons if known.find(lesson.question) is not None]
    if repeated:
        raise ValueError(f"{path}: {repeated[0]!r} is a demonstration and held out as well")
    return HelpDesk(tuple(lessons), held_out, judged)


def _asked_of(facts: Sequence[Mapping[str, Any]], key: str) -> tuple[Asked, ...]:
    return tuple(
        Asked(question, tuple(tuple(group) for group in fact["accept"]), answer=fact["answer"])
        for fact in facts
        for question in fact.get(key, ())
    )


def context_questions(films: Mapping[str, Film], count: int = NUM_CONTEXT_QUESTIONS, *, seed: int = _SEED) -> list[Asked]:
    """Return questions about films that their context answers: from which year, or of which genres, a film is.

    Args:
        films: of the catalogue.
        count: how many; year and genres in turn, with no other film's passage, one and two.
        seed: of films, company and order.
    """
    rng = random.Random(f"{seed}/context-questions")
    items = [_item(film) for film in sorted(films.values(), key=lambda film: int(film.item_id)) if year_of(film.title)]
    kinds = [(make, num_others) for num_others in range(3) for make in (_when, _genres)]
    asked: list[Asked] = []
    while len(asked) < count:
        make, num_others = kinds[len(asked) % len(kinds)]
        film, *others = rng.sample(items, 1 + num_others)
        made = make(film, others, rng)
        if made is not None:
            asked.append(made)
    return asked


def evaluation_of(desk: HelpDesk, context: Sequence[Asked]) -> dict[str, list[dict[str, object]]]:
    """Return the content of the tuner's evaluation file."""
    return {
        "task_slice": [
            {"question": asked.question, "accept": _lists(asked.accept), "answer": asked.answer} for asked in (*desk.held_out, *desk.judged)
        ],
        "context_slice": [
            {
                "question": asked.question,
                "context": [{"title": passage.title, "text": passage.text} for passage in asked.context],
                "accept": _lists(asked.accept),
                **({"reject": list(asked.reject)} if asked.reject else {}),
            }
            for asked in context
        ],
    }


def write_evaluation(path: Path, films: Mapping[str, Film]) -> None:
    """Write the evaluation file of the task, and check that the tuner can read it."""
    fields = evaluation_of(load(), context_questions(films))
    parse_evaluation(fields, where=str(path))
    path.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")


def as_questions(asked: Sequence[Asked]) -> list[Question]:
    """Return them as the tuner knows them."""
    return [Question(question=one.question, accept=one.accept, reject=one.reject, context=one.context, answer=one.answer) for one in asked]


def _item(film: Film) -> CatalogItem:
    return CatalogItem(item_id=film.item_id, title=film.title, categories=film.categories)


def _when(film: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> Asked | None:
    year, other_years = year_of(film.title), [year_of(other.title) for other in others]
    if year in other_years:
        return None
    return _asked(f"In what year was {spoken_title(film.title)} made?", ((year,),), other_years, film, others, rng)


def _genres(film: CatalogItem, others: Sequence[CatalogItem], rng: random.Random) -> Asked | None:
    question = f"What genre is the film {spoken_title(film.title)}?"
    foreign = sorted({category for other in others for category in other.categories} - set(film.categories))
    if any(set(film.categories) <= set(other.categories) for other in others) or (others and not foreign):
        return None
    return _asked(question, tuple((category,) for category in film.categories), foreign, film, others, rng)


def _asked(
    question: str,
    accept: tuple[tuple[str, ...], ...],
    reject: Sequence[str],
    film: CatalogItem,
    others: Sequence[CatalogItem],
    rng: random.Random,
) -> Asked:
    shown = [film, *others]
    rng.shuffle(shown)
    return Asked(question, accept, tuple(passage_of(item) for item in shown), tuple(reject))


def _lists(accept: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(group) for group in accept]
