import math
from dataclasses import replace

import numpy as np
import pytest

from services.common.language.adapter_manifest import AdapterVerdict
from services.common.language.evaluation import CONTEXT, GENERAL, RETRIEVE, SAFETY, TASK
from services.tuner.adapter_gate import Candidate, SliceAnswers, decide, refused_weights
from services.tuner.paired import difference, measurements, share
from tests import gate_simulation

LIMITS = gate_simulation.limits_of()
SOUND = Candidate(losses=(2.0, 0.1), norms={"layer.0": 2.0, "layer.1": 3.0}, replay_share=0.25)


def right(num: int, of: int) -> list[float]:
    return [float(index < num) for index in range(of)]


def answered(base: int, candidate: int, of: int, live: int | None = None, **likelihood) -> SliceAnswers:
    shares = {"base": right(base, of), "candidate": right(candidate, of)}
    if live is not None:
        shares["live"] = right(live, of)
    return SliceAnswers(right=shares, likelihood=likelihood)


LEARNED, READS = answered(0, 29, 30), answered(21, 36, 48)
GOOD = {TASK: LEARNED, CONTEXT: READS}


def test_a_plain_large_win_from_nothing_live_is_accepted_on_thirty_and_fortyeight_questions():
    assert refused_weights(SOUND, LIMITS) == []
    decision = decide(GOOD, SOUND, LIMITS)
    assert (decision.outcome, decision.reasons) == ("accepted", ())
    assert decision.needs(TASK) == decision.needs(CONTEXT) == set()


def test_an_adapter_that_forgot_to_read_is_refused_on_the_context_slice_alone():
    decision = decide(GOOD | {CONTEXT: answered(27, 5, 48)}, SOUND, LIMITS)
    assert decision.outcome == "refused"
    assert decision.reasons == ("answers from given context are worse than the base's: 0.10 against 0.56 right, of 48 questions",)


def test_a_tune_without_replay_is_refused_however_well_it_answers_and_one_from_elsewhere_is_not():
    decision = decide(GOOD, replace(SOUND, replay_share=0.0), LIMITS)
    assert decision.reasons == ("0.00 of what it was trained on are context-answering examples (replay), below the least share of 0.20",)
    assert decide(GOOD, replace(SOUND, replay_share=None), LIMITS).outcome == "accepted"


def test_an_adapter_of_shuffled_answers_is_refused_on_the_task_slice():
    decision = decide(GOOD | {TASK: answered(0, 3, 30)}, SOUND, LIMITS)
    assert (decision.outcome, decision.reasons[0]) == (
        "refused",
        "the task slice is answered right in 0.10 of 30 cases, below the floor of 0.50",
    )


def test_with_few_questions_nothing_is_decided_and_it_says_how_many_more_would():
    equal = {TASK: answered(0, 28, 30, live=28), CONTEXT: answered(21, 36, 48, live=36)}
    decision = decide(equal, SOUND, LIMITS)
    assert decision.outcome == "undecided"
    assert decision.reasons[0] == (
        "not shown yet: the task slice is answered at most 0.05 worse than the live adapter's: 0.93 against 0.93 right, of 30 questions; "
        "about 68 more like these would show it"
    )
    assert 30 < decision.questions_needed < 100
    assert decision.needs(TASK) == {"candidate", "live"}


def test_as_many_more_questions_as_it_named_decide_when_they_are_like_the_first():
    few = {TASK: answered(0, 28, 30, live=28), CONTEXT: answered(21, 48, 48, live=48)}
    more = decide(few, SOUND, LIMITS).questions_needed
    size = 48 + more
    enough = {TASK: answered(0, size, size, live=size), CONTEXT: answered(21, size, size, live=size)}
    assert decide(enough, SOUND, LIMITS).outcome == "accepted"


def test_questions_that_speak_against_a_claim_are_said_to_and_no_number_is_promised():
    worse = GOOD | {CONTEXT: answered(21, 18, 48)}
    decision = decide(worse, SOUND, LIMITS)
    assert decision.outcome == "undecided"
    assert decision.reasons[0].endswith("; these do not speak for it")
    assert decision.questions_needed == 0


def test_an_adapter_that_is_no_better_than_the_base_is_not_accepted_however_much_is_asked():
    same = GOOD | {TASK: answered(1_800, 1_800, 2_000)}
    decision = decide(same, SOUND, LIMITS)
    assert decision.outcome == "undecided"
    assert decision.reasons[0].startswith("not shown: the task slice is answered better than the base's: 0.90 against 0.90 right")


def test_the_live_adapter_is_the_measure_too():
    flips = np.random.default_rng(1).permutation(1_000) < 60
    live = np.array(right(900, 1_000))
    candidate = np.where(flips, 0.0, live)
    base = np.zeros(1_000)
    task = SliceAnswers(right={"base": list(base), "live": list(live), "candidate": list(candidate)})
    decision = decide({TASK: task, CONTEXT: answered(0, 1_000, 1_000, live=1_000)}, SOUND, LIMITS)
    assert decision.outcome == "refused"
    assert decision.reasons[0].startswith("the task slice is answered worse than the live adapter's: 0.8")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (GENERAL, "general questions are answered worse than the base's"),
        (RETRIEVE, "answers from retrieved passages are worse than the base's"),
        (SAFETY, "the safety slice is answered worse than the base's"),
    ],
)
def test_each_slice_that_a_task_has_can_refuse_and_must_be_shown(name, start):
    assert decide(GOOD | {name: answered(90, 30, 100)}, SOUND, LIMITS).reasons[0].startswith(start)
    assert decide(GOOD | {name: answered(3, 3, 3)}, SOUND, LIMITS).outcome == "undecided"
    assert decide(GOOD | {name: answered(400, 400, 400)}, SOUND, LIMITS).outcome == "accepted"


def test_reference_answers_that_became_unlikely_refuse_what_says_the_right_words():
    certain, unsure, unknown = [0.9] * 400, [0.5] * 400, [math.nan] * 400
    equal = answered(0, 400, 400, live=400)
    task = SliceAnswers(right=equal.right, likelihood={"candidate": unsure, "live": certain})
    context = {CONTEXT: answered(0, 400, 400, live=400)}
    decision = decide({TASK: task} | context, SOUND, LIMITS)
    assert decision.outcome == "refused"
    assert decision.reasons == (
        "the reference answers of the task slice are likely, and worse than the live adapter's: "
        "0.50 against 0.90 probability of a token, of 400 questions",
    )
    for likelihood in ({"candidate": certain, "live": certain}, {"candidate": unknown, "live": unknown}, {}):
        assert decide({TASK: replace(task, likelihood=likelihood)} | context, SOUND, LIMITS).outcome == "accepted"


def test_no_answers_at_all_and_missing_slices_are_undecided_and_not_believed():
    nothing = SliceAnswers(right={"base": [], "candidate": []})
    assert decide({TASK: nothing, CONTEXT: nothing}, SOUND, LIMITS).outcome == "undecided"
    assert decide({TASK: LEARNED}, SOUND, LIMITS).reasons == ("the context slice has no question",)


def test_batches_grow_by_half_up_to_what_is_there_and_to_the_most():
    sizes = [0]
    while (size := LIMITS.next_size(sizes[-1], 1_000)) > sizes[-1]:
        sizes.append(size)
    assert sizes[1:5] == [32, 48, 72, 108]
    assert sizes[-1] == 1_000
    assert replace(LIMITS, max_questions=50).next_size(48, 1_000) == 50


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
    left, unpaired = right(24, 30), [1.0 - value for value in right(6, 30)]
    assert difference(left, left).low == difference(left, left).high == 0.0
    assert difference(left, unpaired).high - difference(left, unpaired).low > 0.3


def test_an_interval_holds_its_share_and_narrows_with_more_questions():
    few, many = share(right(15, 20)), share(right(300, 400))
    assert few.value == many.value == 0.75
    assert few.low < 0.6 < 0.7 < many.low < 0.75 < many.high < 0.8 < 0.85 < few.high
    assert (few.num_samples, many.num_samples) == (20, 400)


def test_measurements_name_every_model_and_compare_what_both_were_asked():
    metrics = measurements("context", {"base": right(27, 48), "candidate": right(40, 60)})
    assert {name: round(metric.value, 3) for name, metric in metrics.items()} == {
        "context.base": 0.562,
        "context.live": 0.562,
        "context.candidate": 0.667,
        "context.candidate_minus_live": 0.271,
        "context.candidate_minus_base": 0.271,
    }


def test_a_verdict_says_in_a_word_what_it_is():
    verdict = AdapterVerdict(name="x", accepted=False)
    assert (verdict.outcome, replace(verdict, is_undecided=True).outcome, replace(verdict, accepted=True).outcome) == (
        "refused",
        "undecided",
        "accepted",
    )


# The rates of the real code, in small; the table of 1,000 draws a row: services/tuner/README.md and test_gate_rates.py (deep).


@pytest.mark.parametrize("row", [row for row in gate_simulation.ROWS if "5 points worse" in row.name or "10 points" in row.name], ids=str)
def test_few_that_are_worse_by_the_margin_pass_whatever_is_asked(row):
    for size in (48, 500):
        outcomes, _ = gate_simulation.rates(row, size, 60, LIMITS)
        assert outcomes["accepted"] <= 5, (row, size, outcomes)  # 60 draws of at most 5 %: more than 5 in one of a hundred


def test_an_equal_retrain_passes_with_enough_questions_and_none_is_refused():
    outcomes, _ = gate_simulation.rates(gate_simulation.ROWS[0], 2_000, 40, LIMITS)
    assert outcomes["accepted"] >= 36
    assert outcomes["refused"] <= 2


def test_plain_good_and_plain_bad_ones_are_told_apart_with_few_questions():
    good, forgot, nothing = (row for row in gate_simulation.ROWS if not row.has_live)
    assert gate_simulation.rates(good, 250, 40, LIMITS)[0]["accepted"] >= 38
    assert gate_simulation.rates(forgot, 250, 40, LIMITS)[0]["accepted"] == 0
    assert gate_simulation.rates(nothing, 48, 40, LIMITS)[0]["refused"] >= 38
