"""Where an item stood is learned apart from what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import ConfigurationError, CorruptArtifact
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import FeatureStates, replay
from services.trainer.learner import Learner
from services.trainer.position_bias import PositionBias
from services.trainer.replay_order import BatchConfig, replay_order
from tests.learning import SPEC, groups

pytestmark = pytest.mark.ml

PLACES = 5
# How much more often an item is clicked on at each place, as odds; the first stays what it is.
TRUE_BIAS = np.asarray([0.0, -0.8, -1.4, -1.9, -2.3])
SHOWN = {
    "format": 2,
    "model": "ranker",
    "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
    "kinds": {"click": {}},
    "tasks": [{"name": "interact", "labels": {"click": 1}, "unanswered": 0}],
    "negatives": {"source": "impressions", "keep_rate": 1.0},
    "blend": {"interact": 1.0},
}
NUM_ITEMS = 10
# The worse half is shown first as a rule: without places, it looks like the better one.
ITEM_LOGITS = np.repeat([-1.3, -0.3], NUM_ITEMS // 2)


def impressions(count: int) -> list[Interaction]:
    rng = np.random.default_rng(4)
    found = []
    for number in range(count):
        item = int(rng.integers(NUM_ITEMS))
        usual = rng.integers(0, 2) if item < NUM_ITEMS // 2 else rng.integers(2, 5)
        place = int(usual if rng.random() < 0.8 else rng.integers(PLACES))
        is_clicked = rng.random() < 1.0 / (1.0 + np.exp(-ITEM_LOGITS[item] - TRUE_BIAS[place]))
        user, kind = f"u{rng.integers(400)}", "click" if is_clicked else "impression"
        found.append(Interaction(user, f"i{item}", kind, 1.0, number * 1000, position=place + 1))
    return found


def learned(spec: FeatureSpec, acts: list[Interaction]) -> tuple[Learner, list[SampleGroup]]:
    learner, config = Learner(spec), BatchConfig(feature_lag_s=0.0)
    items = [f"i{item}" for item in range(NUM_ITEMS)]
    states = FeatureStates(spec, dict.fromkeys(items, ()))
    seen = list(replay(spec, replay_order(acts, config), items, states, config, 0))
    for start in range(0, len(seen), 32):
        learner.step(seen[start : start + 32])
    return learner, seen


def test_what_is_shown_last_though_it_is_better_is_found_to_be_better() -> None:
    acts = impressions(8_000)
    aware, seen = learned(FeatureSpec.parse(SHOWN | {"position_bias": {"places": PLACES}}), acts)
    blind, _ = learned(FeatureSpec.parse(SHOWN), acts)
    better = {}
    for name, learner in (("aware", aware), ("blind", blind)):
        scores = {f"i{item}": [] for item in range(NUM_ITEMS)}
        for group in seen[-1_500:]:
            one = group.samples[0].item_id
            scores[one].append(float(learner.score_block(group.features_block, [one])[0, 0]))
        worse_half, better_half = (np.mean([np.mean(scores[f"i{item}"]) for item in half]) for half in (range(5), range(5, 10)))
        better[name] = better_half / worse_half
    # At the first place the better half is clicked on in .43 of its impressions, the worse one in .21.
    assert better["blind"] < 1.0 and better["aware"] > 1.2
    values_P = aware._position_bias.values_PT[:, 0]
    assert values_P[0] == 0.0 and np.abs(values_P - TRUE_BIAS).max() < 0.9 and values_P[-1] < -1.5
    # Where items stood, predictions and clicks agree.
    predicted = np.concatenate(aware.score(seen[-1_500:]))[:, 0]
    clicked = np.asarray([group.samples[0].revision for group in seen[-1_500:]])
    assert predicted.sum() == pytest.approx(clicked.sum(), rel=0.2)


@pytest.mark.parametrize("seed", [0, 1])
def test_places_that_are_answered_alike_get_no_numbers_though_answers_are_rare(seed: int) -> None:
    """A network that begins at one half is far off for long, at all places alike: one click in 200, equally often at each of three."""
    rng = np.random.default_rng(seed)
    acts = [
        Interaction(
            f"u{rng.integers(400)}", f"i{rng.integers(NUM_ITEMS)}", "click" if rng.random() < 0.005 else "impression", 1.0, number * 1000
        )
        for number in range(8_000)
    ]
    acts = [replace(one, position=1 + number % 3) for number, one in enumerate(acts)]
    learner, seen = learned(FeatureSpec.parse(SHOWN | {"position_bias": {"places": 3}}), acts)
    # With the whole gradient: -1.6 and -1.7 (seed 0), and the first place was said to be clicked on three times as often as it was.
    assert np.abs(learner._position_bias.values_PT[:, 0]).max() < 0.5
    predicted = np.concatenate(learner.score(seen[-3_000:]))[:, 0]
    at_first = np.asarray([group.samples[0].position == 1 for group in seen[-3_000:]])
    assert predicted[at_first].mean() == pytest.approx(predicted[~at_first].mean(), rel=0.5)


def test_each_number_moves_by_adagrad_and_the_first_place_and_unknown_ones_do_not() -> None:
    bias = PositionBias(3, 2, rate=0.5, accumulator_init=0.25)
    of_logits = np.asarray([[1.0, 0.0], [2.0, 1.0], [-3.0, 4.0], [5.0, 5.0], [1.0, 2.0]], np.float32)
    square = bias.learn([1, 2, 9, 0, 2], of_logits)
    # Rows: the second place twice; the third takes what stands further behind. Less the mean of all with a label: 1.2 and 3.
    gradient = np.asarray([[0.6, -3.0], [-4.2, 1.0]])
    np.testing.assert_allclose(bias.values_PT[1:], -0.5 * gradient / np.sqrt(0.25 + gradient**2), rtol=1e-6)
    assert (bias.values_PT[0] == 0).all() and square == pytest.approx((gradient**2).sum())
    np.testing.assert_array_equal(bias.of([0, 1, 3, 4]), bias.values_PT[[0, 0, 2, 2]])


def test_probabilities_are_corrected_on_the_scale_of_odds() -> None:
    bias = PositionBias(2, 1, rate=1.0, accumulator_init=1.0)
    bias.values_PT[1] = np.log(0.25)
    found = bias.corrected(np.asarray([[0.5], [0.5], [0.0], [1.0]], np.float32), [1, 2, 2, 2])
    np.testing.assert_allclose(found[:, 0], [0.5, 0.2, 0.0, 1.0])


def test_a_spec_without_places_learns_the_bits_that_it_learned_and_has_no_state_of_them() -> None:
    with_places = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"position_bias": {"places": 3}})
    assert with_places.schema_hash == SPEC.schema_hash
    plain, aware = Learner(SPEC), Learner(with_places)
    unplaced = groups(40)
    for learner in (plain, aware):
        learner.step(unplaced)
    assert not any(name.startswith("position_bias") for name in plain.state_arrays())
    weights = plain.state_arrays()
    for name, array in aware.state_arrays().items():
        if name in weights:
            np.testing.assert_array_equal(array, weights[name], err_msg="without positions, places teach nothing")


def test_the_state_goes_on_where_it_was_and_its_hash_knows_the_places() -> None:
    spec = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"position_bias": {"places": 3}})
    placed = groups(60, spec=spec)
    for group in placed:
        for at, sample in enumerate(group.samples, 1):
            sample.position = at
    one = Learner(spec)
    one.step(placed[:30])
    arrays = one.state_arrays()
    assert (one._position_bias.values_PT[1:] != 0).any()
    two = Learner(spec)
    two.load_state_arrays(arrays)
    assert one.state_hash() == two.state_hash()
    for learner in (one, two):
        learner.step(placed[30:])
    assert one.state_hash() == two.state_hash()
    two._position_bias.values_PT[2] += 1.0
    assert one.state_hash() != two.state_hash()
    more = Learner(FeatureSpec.parse(SPEC.model_dump(mode="json") | {"position_bias": {"places": 5}}))
    more.load_state_arrays(arrays)
    values = arrays["position_bias/values"]
    np.testing.assert_array_equal(more._position_bias.values_PT, values[[0, 1, 2, 2, 2]])
    unplaced = Learner(SPEC)
    unplaced.load_state_arrays(arrays)
    more.load_state_arrays(unplaced.state_arrays())
    assert (more._position_bias.values_PT == 0).all(), "a state without places begins anew"
    with pytest.raises(CorruptArtifact, match="position_bias/accumulators"):
        two.load_state_arrays({name: array for name, array in arrays.items() if name != "position_bias/accumulators"})
    with pytest.raises(CorruptArtifact, match="are of other tasks"):
        two.load_state_arrays(arrays | {"position_bias/values": values[:, :1]})


def test_the_number_of_places_is_bounded() -> None:
    for places in (1, 10_000):
        with pytest.raises(ConfigurationError, match=r"position_bias\.places"):
            FeatureSpec.parse(SHOWN | {"position_bias": {"places": places}})
