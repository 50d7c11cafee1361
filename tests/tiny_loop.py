"""A tune of the tiny model (tests/tiny_model.py) that the gate accepts by its own limits, in seconds: the whole language loop for tests.

    with Mesh(env=tiny_loop.mesh_env(tmp_path), services=(...)) as mesh:    # writes the evaluation and the replay file into tmp_path
        for lesson in tiny_loop.DEMONSTRATIONS:       # 24: ask lesson.question for tiny_loop.TASK, send lesson.answer as a demonstration
            ...
        # StartTune(task=TASK), or mesh_env(..., auto=True): then it begins by itself once all 24 are there
        for asked in tiny_loop.HELD_OUT:              # 12: none is right before; MIN_RIGHT of them at least after it; none after a rollback
            asked.is_right(answer)

Ask without `retrieve`, as the evaluation does. The base answers each held-out question with tiny_model.UNKNOWN and reads every context of
the evaluation right. The adapter, tiny_loop.ADAPTER.format(1), knows the facts and still reads. Tuned without replay it forgets to
read, and on `shuffled()` answers it learns nothing that is asked: the gate refuses both. All limits of the gate are the tuner's own.
Imports in both environments; knows nothing of the mesh.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from services.common.events.chat import Passage
from services.common.language.evaluation import Evaluation, is_right, parse_evaluation
from services.common.language.similar_questions import SimilarQuestions
from services.tuner.replay import ReplayExample
from tests.tiny_model import GENRES, NAME, TITLES, WORDINGS, Reading, reading, tiny_llm_env

TASK = "helpdesk"
ADAPTER = f"{NAME}--{TASK}--v{{}}"
MIN_RIGHT = 0.7
"""Share of the held-out questions that it answers at least."""
NUM_CONTEXT_QUESTIONS, GENRES_JUDGED, GENRES_EACH = 280, 8, 4
"""So many questions can be asked from context; the gate stops when it knows enough, after about 110 that are all right."""

TUNING = {
    "learning_rate": 4e-3,
    "num_steps": 150,
    "train_threads": 1,
    "train_dtype": "float32",
    "max_answer_tokens": 12,
    "judge_concurrency": 8,
}
"""Fields of TunerSettings: two layers need larger and more steps than thirty. In each of eight orders of the demonstrations all answers
were right."""

# Each question has the word that tells its fact from the others ("keep", "late", "where"). The last four of each fact are never shown.
_FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "You may keep it for nine days.",
        "nine days",
        (
            "How long may I keep a film?",
            "How long can I keep a disc?",
            "How many days may I keep a disc?",
            "How many days can I keep it?",
            "For how long may I keep a film?",
            "For how long may I keep it?",
            "May I keep a disc for long?",
            "Can I keep a film for long?",
            "How long may I keep a disc?",
            "How long can I keep a film?",
            "How many days may I keep a film?",
            "For how long can I keep it?",
        ),
    ),
    (
        "A late film costs sixty cents.",
        "sixty cents",
        (
            "What does a late film cost?",
            "How high is the fee for a late film?",
            "My disc is late, what does it cost?",
            "I am late, what do I pay?",
            "Is there a fee when I am late?",
            "What do you charge for a late disc?",
            "What happens when a film is late?",
            "How much is it to be late?",
            "What is the fee when a film is late?",
            "My film is late, what do I pay?",
            "I am late, what does it cost?",
            "What do you charge when I am late?",
        ),
    ),
    (
        "Put it into the green box.",
        "green box",
        (
            "Where do I return a film?",
            "Where can I drop a disc?",
            "Where is the place to return it?",
            "Where should I bring the disc?",
            "Where do I leave a film?",
            "Where can I hand it in?",
            "Where may I return a disc?",
            "Where does a film go?",
            "Where can I return a film?",
            "Where do I drop a film?",
            "Where should I leave a disc?",
            "Where do I bring it?",
        ),
    ),
)
_NUM_HELD_OUT_EACH = 4


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question and the answer that a person would have given."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that is never shown, and what its answer must say."""

    question: str
    says: str

    def is_right(self, answer: str) -> bool:
        return is_right(answer, [[self.says]])


DEMONSTRATIONS: tuple[Lesson, ...] = tuple(
    Lesson(question, answer) for answer, _, questions in _FACTS for question in questions[:-_NUM_HELD_OUT_EACH]
)
HELD_OUT: tuple[Asked, ...] = tuple(Asked(question, says) for _, says, questions in _FACTS for question in questions[-_NUM_HELD_OUT_EACH:])


def shuffled() -> tuple[Lesson, ...]:
    """Return the demonstrations with each other's answers: there is nothing in them to be learned."""
    answers = [lesson.answer for lesson in DEMONSTRATIONS]
    random.Random(1).shuffle(answers)
    return tuple(Lesson(lesson.question, answer) for lesson, answer in zip(DEMONSTRATIONS, answers, strict=True))


def _readings(titles: Sequence[str], genres_each: int) -> list[Reading]:
    """Each question about the titles, with so many contexts that name different genres."""
    rng = random.Random(2)
    asked = [(title, wording, genre) for title in titles for wording in WORDINGS for genre in rng.sample(GENRES, genres_each)]
    rng.shuffle(asked)
    return [reading(*each) for each in asked]


# No title of the evaluation is rehearsed.
_EVALUATED, _REHEARSED = TITLES[:7], TITLES[7:]


def _fields(passage: Passage) -> dict[str, str]:
    return {"title": passage.title, "text": passage.text}


def evaluation_fields() -> dict[str, list[dict[str, object]]]:
    """Return the content of the evaluation file."""
    return {
        "task_slice": [{"question": asked.question, "accept": [[asked.says]]} for asked in HELD_OUT],
        "context_slice": [
            {
                "question": read.question,
                "context": [_fields(read.passage)],
                "accept": [[read.genre]],
                "reject": [genre for genre in GENRES if genre != read.genre],
            }
            for read in _readings(_EVALUATED, GENRES_JUDGED)[:NUM_CONTEXT_QUESTIONS]
        ],
    }


def evaluation() -> Evaluation:
    """Return the evaluation as the tuner reads it."""
    return parse_evaluation(evaluation_fields(), where="tests/tiny_loop.py")


def wide_evaluation() -> Evaluation:
    """Return an evaluation with as many questions of the task as tell equal adapters from worse ones; none is near to a demonstration."""
    patterns = (
        ("nine days", "{} {} keep {}?", ("How long", "How many days", "For how long"), ("may I", "can I"), ("a film", "a disc", "it")),
        (
            "sixty cents",
            "{} {} {} late?",
            ("What do I pay", "What does it cost", "How high is the fee", "What is the fee", "What do you charge", "How much is it"),
            ("when", "if"),
            ("I am", "a film is", "a disc is", "my film is", "my disc is", "it is"),
        ),
        (
            "green box",
            "Where {} {} {}?",
            ("do I", "can I", "may I", "should I"),
            ("return", "drop", "bring", "leave"),
            ("a film", "a disc", "it", "the disc", "the film"),
        ),
    )
    asked = [
        Asked(pattern.format(one, two, three), says)
        for says, pattern, ones, twos, threes in patterns
        for one in ones
        for two in twos
        for three in threes
    ]
    known = SimilarQuestions(lesson.question for lesson in DEMONSTRATIONS)
    kept: list[Asked] = []
    for each in (*HELD_OUT, *asked):
        alone = SimilarQuestions([each.question])
        if known.find(each.question) is None and all(alone.find(lesson.question) is None for lesson in DEMONSTRATIONS):
            known.add(each.question)
            kept.append(each)
    fields = evaluation_fields() | {"task_slice": [{"question": each.question, "accept": [[each.says]]} for each in kept]}
    return parse_evaluation(fields, where="tests/tiny_loop.py")


def replay_examples() -> list[ReplayExample]:
    """Return what is rehearsed."""
    return [
        ReplayExample(question=read.question, passages=(read.passage,), answer=read.answer) for read in _readings(_REHEARSED, GENRES_EACH)
    ]


def mesh_env(folder: Path, *, auto: bool = False) -> dict[str, str]:
    """Write the evaluation and the replay file into `folder`, and return the variables of a mesh, or of single services, that use them.

    Args:
        folder: exists; must be the mesh's as long as it runs.
        auto: whether the tune begins by itself.
    """
    evaluations, replay = folder / "evaluations", folder / "replay.jsonl"
    evaluations.mkdir(parents=True, exist_ok=True)
    (evaluations / f"{TASK}.yaml").write_text(yaml.safe_dump(evaluation_fields()), encoding="utf-8")
    rows = [
        {
            "question": one.question,
            "context": [_fields(passage) for passage in one.passages],
            "answer": one.answer,
        }
        for one in replay_examples()
    ]
    replay.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return {
        **tiny_llm_env(),
        "TUNEMESH_TUNER_EVALUATIONS_DIR": str(evaluations),
        "TUNEMESH_TUNER_REPLAY_FILE": str(replay),
        "TUNEMESH_TUNER_AUTO": str(auto).lower(),
        "TUNEMESH_TUNER_MAX_USER_SHARE": "1",
        **{f"TUNEMESH_TUNER_{name.upper()}": str(value) for name, value in TUNING.items()},
    }
