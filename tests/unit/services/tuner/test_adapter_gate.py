import math
from dataclasses import replace

import pytest

from services.tuner.adapter_gate import (
    AdapterGateLimits,
    Candidate,
    SliceOutcome,
    difference,
    measurements,
    refused_answers,
    refused_weights,
    share,
)

LIMITS = AdapterGateLimits(
    min_task_right=0.7,
    max_task_loss=0.0,
    max_context_loss=0.0,
    context_margin=0.15,
    min_replay_share=0.2,
    max_update_norm=30.0,
    min_task_questions=10,
    min_context_questions=30,
)
SOUND = Candidate(losses=(2.0, 0.1), norms={"layer.0": 2.0, "layer.1": 3.0}, replay_share=0.25)


def right(num: int, of: int) -> list[bool]:
    return [index < num for index in range(of)]


LEARNED = SliceOutcome(base=right(0, 30), live=right(0, 30), candidate=right(27, 30))
READS = SliceOutcome(base=right(27, 48), live=right(27, 48), candidate=right(40, 48))


def test_an_adapter_that_learned_its_task_and_still_reads_is_accepted():
    assert refused_weights(SOUND, LIMITS) == []
    assert refused_answers(LEARNED, READS, SOUND, LIMITS) == []


def test_an_adapter_that_forgot_to_read_is_refused_on_the_context_slice_alone():
    forgot = replace(READS, candidate=right(19, 48))
    refusals = refused_answers(LEARNED, forgot, SOUND, LIMITS)
    assert len(refusals) == 2
    assert refusals[0].startswith("answers from given context became worse than the base's: 0.40 against 0.56 right, difference -0.17 [")
    assert refusals[1].startswith("answers from given context may be worse than the base's by more than 0.15: difference -0.17 [")


def test_a_tune_without_replay_is_refused_however_well_it_answers():
    refusals = refused_answers(LEARNED, READS, replace(SOUND, replay_share=0.0), LIMITS)
    assert refusals == [
        "0.00 of what it was trained on are context-answering examples (replay), below the least share of 0.20",
    ]


def test_an_adapter_of_shuffled_answers_is_refused_on_the_task_slice():
    refusals = refused_answers(replace(LEARNED, candidate=right(3, 30)), READS, SOUND, LIMITS)
    assert refusals[0] == "the task slice is answered right in 0.10 of the cases, below the floor of 0.70"
    assert refusals[1].startswith("the task slice is not answered better than by the base: 0.10 against 0.00, difference +0.10 [")


def test_a_later_adapter_may_be_as_good_as_the_live_one_and_not_worse():
    same = SliceOutcome(base=right(0, 30), live=right(27, 30), candidate=right(27, 30))
    assert refused_answers(same, READS, SOUND, LIMITS) == []
    worse = replace(same, candidate=right(26, 30))
    assert refused_answers(worse, READS, SOUND, LIMITS) == [
        "the task slice is answered worse than by the live model: 0.87 against 0.90 right, difference -0.03 [-0.10, +0.00]"
    ]
    assert refused_answers(worse, READS, SOUND, replace(LIMITS, max_task_loss=0.05)) == []


def test_an_adapter_that_is_no_better_than_the_base_is_refused():
    same = SliceOutcome(base=right(27, 30), live=right(27, 30), candidate=right(27, 30))
    assert refused_answers(same, READS, SOUND, LIMITS) == [
        "the task slice is not answered better than by the base: 0.90 against 0.90, difference +0.00 [+0.00, +0.00], "
        "and the lower bound must be above 0"
    ]


def test_answers_from_context_are_compared_with_the_live_adapter_too():
    worse = replace(READS, live=right(44, 48))
    assert refused_answers(LEARNED, worse, SOUND, LIMITS)[0].startswith(
        "answers from given context became worse than the live model's: 0.83 against 0.92 right"
    )


def test_too_few_questions_decide_nothing():
    few = SliceOutcome(base=right(0, 9), live=right(0, 9), candidate=right(9, 9))
    little = SliceOutcome(base=right(9, 29), live=right(9, 29), candidate=right(29, 29))
    assert refused_answers(few, little, SOUND, LIMITS) == [
        "the task slice has 9 questions, and fewer than 10 say nothing",
        "the context slice has 29 questions, and fewer than 30 say nothing",
    ]


def test_no_answers_at_all_are_refused_and_not_believed():
    nothing = SliceOutcome(base=[], live=[], candidate=[])
    assert len(refused_answers(nothing, nothing, SOUND, LIMITS)) >= 4


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (replace(SOUND, losses=(2.0, math.nan)), "the loss is NaN or infinite at 1 of 2 steps, first at step 2"),
        (replace(SOUND, norms={"layer.0": 1.0, "layer.1": math.inf}), "the weights of 1 of 2 layers hold NaN or infinity, e.g. layer.1"),
        (replace(SOUND, norms={"layer.0": 31.0}), "the update of layer.0 has norm 31, above the limit of 30"),
        (replace(SOUND, norms={}), "the adapter changes no layer"),
    ],
)
def test_unsound_weights_are_refused_before_anything_is_loaded(candidate, message):
    assert refused_weights(candidate, LIMITS) == [message]


def test_pairs_make_the_interval_of_a_difference_narrow():
    left, unpaired = right(24, 30), [not value for value in right(6, 30)]
    assert difference(left, left).low == difference(left, left).high == 0.0
    assert difference(left, unpaired).high - difference(left, unpaired).low > 0.3


def test_an_interval_holds_its_share_and_narrows_with_more_questions():
    few, many = share(right(15, 20)), share(right(300, 400))
    assert few.value == many.value == 0.75
    assert few.low < 0.6 < 0.7 < many.low < 0.75 < many.high < 0.8 < 0.85 < few.high
    assert (few.num_samples, many.num_samples) == (20, 400)


def test_measurements_name_every_model_on_both_slices():
    metrics = measurements(LEARNED, READS)
    assert {name: round(metric.value, 3) for name, metric in metrics.items()} == {
        "task.base": 0.0,
        "task.live": 0.0,
        "task.candidate": 0.9,
        "task.candidate_minus_live": 0.9,
        "task.candidate_minus_base": 0.9,
        "context.base": 0.562,
        "context.live": 0.562,
        "context.candidate": 0.833,
        "context.candidate_minus_live": 0.271,
        "context.candidate_minus_base": 0.271,
    }
