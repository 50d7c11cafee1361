"""The gate on six real adapters of each kind: good ones, equal to the live one, and bad ones of three kinds; and one judged twenty times.

The tiny model on vLLM, trained as the tuner trains; judged by the tuner's own limits on a task slice that is large enough to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.language.evaluation import Evaluation
from services.common.language.similar_questions import SimilarQuestions
from services.tuner.tune_status import TuneStatus
from tests import tiny_loop
from tests.integration.llm.running import Llm
from tests.integration.llm.tune_bench import Bench, ForgetfulStore

pytestmark = [pytest.mark.integration, pytest.mark.ml, pytest.mark.deep, pytest.mark.timeout(1200)]

NUM_EACH = 6
WRONG = {"nine days": "two weeks", "sixty cents": "eleven euros", "green box": "blue bag"}


def misled(fact: int) -> list[tiny_loop.Lesson]:
    """The demonstrations with a wrong answer to one fact of the three: the last two are most of the evaluation."""
    right, wrong = list(WRONG.items())[fact]
    return [replace(lesson, answer=lesson.answer.replace(right, wrong)) for lesson in tiny_loop.DEMONSTRATIONS]


async def tuned(bench: Bench, lessons: Sequence[tiny_loop.Lesson], evaluation: Evaluation, seed: int, **settings: object) -> TuneStatus:
    """Tune and judge; the alias then points again at what it pointed at before, so that each is judged as if it came alone."""
    target, version = bench.alias.target, bench.alias.version
    status = await bench.tune(lessons, evaluation=evaluation, seed=seed, **settings)
    if bench.alias.target != target:
        bench.llm.unload(bench.alias.target)
        bench.alias.target, bench.alias.version = target, version
    return status


async def test_equal_retrains_pass_bad_ones_do_not_and_twenty_judgements_are_one_verdict(llm: Llm, tmp_path: Path) -> None:
    bench = Bench(llm, tmp_path)
    evaluation = tiny_loop.wide_evaluation()
    live = await bench.tune(tiny_loop.DEMONSTRATIONS, evaluation=evaluation)
    assert live.phase == "live", live

    store = ForgetfulStore(bench.llm)
    verdicts = set()
    for _ in range(20):
        judged = await bench.judge(live.adapter, store, evaluation=evaluation, max_questions=32)
        assert judged.error == ""
        verdicts.add((judged.phase, tuple(sorted(judged.metrics.items())), tuple(judged.refusals)))
    assert len(verdicts) == 1, verdicts

    good = [await tuned(bench, tiny_loop.DEMONSTRATIONS, evaluation, seed) for seed in range(1, NUM_EACH + 1)]
    bad = []
    for seed in (1, 2):
        bad.append(await tuned(bench, misled(seed), evaluation, seed))
        bad.append(await tuned(bench, tiny_loop.shuffled(), evaluation, seed))
        # Its want of replay is overlooked: its answers have to give it away.
        bad.append(await tuned(bench, tiny_loop.DEMONSTRATIONS, evaluation, seed, replay_share=0.0, min_replay_share=0.0))
    assert len(bad) == NUM_EACH
    print([(one.phase, one.refusals) for one in good], [(one.phase, one.refusals[:1]) for one in bad])
    assert [one.phase for one in good].count("live") >= NUM_EACH - 1
    assert [one.error for one in (*good, *bad) if one.error] == []
    assert not any(one.phase == "live" for one in bad)


def test_the_wide_evaluation_asks_what_is_not_shown() -> None:
    evaluation = tiny_loop.wide_evaluation()
    asked = SimilarQuestions(one.question for one in evaluation.task_slice)
    assert len(evaluation.task_slice) >= 150
    assert not any(asked.find(lesson.question) is not None for lesson in tiny_loop.DEMONSTRATIONS)
