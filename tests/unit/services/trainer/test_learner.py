from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import sample_id
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.inputs import assemble
from services.common.ranker.labels import keep_negative
from services.common.ranker.networks.interface import Rows
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import score
from services.trainer.batch import FeatureStates
from services.trainer.event_samples import NUM_OTHERS
from services.trainer.learner import Learner, LearnerConfig
from services.trainer.server import make_learner
from tests.learning import CATEGORIES, ITEMS, SPEC, group_of, groups, sample

pytestmark = pytest.mark.ml


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def learn(learner: Learner, samples: list[SampleGroup], per_step: int = 8) -> list[float]:
    return [sum(learner.step(samples[at : at + per_step]).loss_by_task) for at in range(0, len(samples), per_step)]


def test_equal_calls_give_equal_losses_and_equal_bits_whatever_the_global_random_state() -> None:
    samples = groups(120)
    torch.manual_seed(1)
    one = Learner(SPEC)
    first = learn(one, samples)
    torch.manual_seed(2)
    two = Learner(SPEC)
    assert learn(two, samples) == first
    assert one.state_hash() == two.state_hash()
    learn(two, samples[:8])
    assert one.state_hash() != two.state_hash()


def test_learning_goes_on_from_a_saved_state_as_if_never_interrupted() -> None:
    samples = groups(120)
    whole, first = Learner(SPEC), Learner(SPEC)
    learn(whole, samples)
    learn(first, samples[:64])
    second = Learner(SPEC)
    second.load_state_arrays(first.state_arrays())
    assert second.state_hash() == first.state_hash()
    learn(second, samples[64:])
    assert second.state_hash() == whole.state_hash()


def test_a_foreign_or_incomplete_state_is_refused() -> None:
    state = Learner(SPEC).state_arrays()
    for name in ("dense_opt/first_moment", "learner/steps", "dense/dot_scale", "table/user/rows"):
        with pytest.raises(CorruptArtifact):
            Learner(SPEC).load_state_arrays({key: value for key, value in state.items() if key != name})
    with pytest.raises(CorruptArtifact, match="another network"):
        Learner(SPEC).load_state_arrays({**state, "dense_opt/first_moment": np.zeros(3, np.float32)})


def test_what_the_trainer_scores_is_what_a_replica_with_its_rows_and_weights_scores() -> None:
    samples = groups(60)
    learner = Learner(SPEC)
    learn(learner, samples[:-1])
    group = samples[-1]
    replica = make_network(SPEC, seed=99)
    replica.load(learner.dense_state())
    item_ids = [one.item_id for one in group.samples]
    inputs = assemble(SPEC, [(exposure_block.decode(group.features_block, SPEC), np.asarray([int(item) for item in item_ids]))])
    user, item = learner.tables["user"], learner.tables["item"]
    history = item.lookup(inputs.history_keys_GL.reshape(-1)).reshape(*inputs.history_keys_GL.shape, -1)
    rows = Rows(*(torch.from_numpy(part) for part in (user.lookup(inputs.user_keys_G), item.lookup(inputs.item_keys_B), history)))
    served = score(replica, inputs, rows, precision="fp32")
    np.testing.assert_array_equal(served, learner.score([group])[0])
    np.testing.assert_array_equal(served, learner.score_block(group.features_block, item_ids))


def test_scoring_changes_nothing() -> None:
    samples = groups(40)
    learner = Learner(SPEC)
    learn(learner, samples)
    before = learner.state_hash()
    scores = learner.score(samples[:3])
    assert [part.shape for part in scores] == [(len(group.samples), 2) for group in samples[:3]]
    assert learner.state_hash() == before


def test_it_learns_what_is_popular_and_who_likes_what() -> None:
    learner = Learner(SPEC)
    losses = learn(learner, groups(1_200))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    quality = learner.prequential()
    assert quality["interact"].auc > 0.8
    assert quality["like"].auc > 0.6


def test_steps_mark_the_rows_that_changed_for_the_next_delta() -> None:
    samples = groups(30)
    learner = Learner(SPEC)
    learn(learner, samples[:-1])
    item = learner.tables["item"]
    item.ack_touched(item.take_touched().token)
    learner.step(samples[-1:])
    shown = {int(one.item_id) for one in samples[-1].samples}
    history = set(exposure_block.decode(samples[-1].features_block, SPEC).history_keys_L.tolist())
    assert set(item.take_touched().ids.tolist()) == shown | history


def test_a_sample_without_a_label_teaches_that_task_nothing() -> None:
    samples = groups(1)
    for one in samples[0].samples:
        del one.labels[:]
    learner = Learner(SPEC)
    before = learner.dense_state()
    assert learner.step(samples).loss_by_task == (0.0, 0.0)
    assert all(np.array_equal(before[name], after) for name, after in learner.dense_state().items())


class World:
    """One user and a pool of items that cannot be told apart; each exposure of an item is answered with one known probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.rng = np.random.default_rng(5)
        states = FeatureStates(SPEC, CATEGORIES)
        self.features: Features = states.features("u", ITEMS[:20])
        self.block = exposure_block.encode(self.features, SPEC.schema_hash)

    def calibration(self, learner: Learner) -> float:
        """Return mean prediction over the true probability."""
        return float(learner.score_block(self.block, ITEMS[:20])[:, 0].mean() / self.probability)


def fast() -> Learner:
    return Learner(SPEC, LearnerConfig(dense_rate=3e-3, user_rate=0.02, item_rate=0.02, bias_rate=0.02))


def test_predictions_are_calibrated_although_negatives_are_thinned() -> None:
    world, learner = World(0.1), fast()
    rate = SPEC.negatives.keep_rate
    recent = []
    for request in range(700):
        rows = []
        for row in range(20):
            answered = world.rng.random() < world.probability
            name = f"r{request}"
            if answered:
                rows.append((sample(ITEMS[row], 1.0, revision=1, request_id=name), row))
            elif keep_negative(sample_id(name, ITEMS[row], 0), rate):
                rows.append((sample(ITEMS[row], 0.0, revision=0, keep_rate=rate, request_id=name), row))
        if rows:
            learner.step([group_of("u", rows, world.block)])
        if request >= 400:
            recent.append(world.calibration(learner))
    assert np.mean(recent) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("retracts", [True, False])
def test_late_positives_keep_predictions_calibrated_only_because_they_take_their_negatives_back(retracts: bool) -> None:
    """Every answer comes after the window: each exposure has first been a (thinned) negative."""
    world, learner = World(0.3), fast()
    rate = SPEC.negatives.keep_rate
    late: list[list[tuple[SampleGroup, int]]] = []
    recent = []
    for request in range(700):
        name, now, answers = f"r{request}", [], []
        for row in range(20):
            kept = keep_negative(sample_id(name, ITEMS[row], 0), rate)
            if kept:
                now.append((sample(ITEMS[row], 0.0, revision=0, keep_rate=rate, request_id=name), row))
            if world.rng.random() < world.probability:
                answers.append((sample(ITEMS[row], 1.0, revision=1, retracts=kept and retracts, request_id=name), row))
        late.append(answers)
        due = late.pop(0) if len(late) > 20 else []
        batch = [group_of("u", rows, world.block) for rows in (now, due) if rows]
        if batch:
            learner.step(batch)
        if request >= 400:
            recent.append(world.calibration(learner))
    # Without it every positive is also a negative: odds p against 1 become p against 1 + p's own share, 0.23 for 0.3.
    expected = 1.0 if retracts else 1.0 / (1.0 + world.probability)
    assert np.mean(recent) == pytest.approx(expected, abs=0.1)


def test_a_positive_that_takes_its_negative_back_cancels_it_exactly() -> None:
    """The negative's loss and its withdrawal sum to nothing: what remains is the positive's loss."""
    world = World(0.5)
    negative, positive = sample("0", 0.0, revision=0, keep_rate=SPEC.negatives.keep_rate), sample("0", 1.0, revision=1)
    late = sample("0", 1.0, revision=1, retracts=True)
    both = Learner(SPEC).step([group_of("u", [(negative, 0), (late, 0)], world.block)]).loss_by_task[0]
    alone = Learner(SPEC).step([group_of("u", [(positive, 0)], world.block)]).loss_by_task[0]
    assert both == pytest.approx(alone, rel=1e-5)


def test_a_negative_kept_at_another_rate_weighs_by_it() -> None:
    world, rate = World(0.5), SPEC.negatives.keep_rate
    usual = Learner(SPEC).step([group_of("u", [(sample("0", 0.0, revision=0, keep_rate=rate), 0)], world.block)]).loss_by_task[0]
    rarer = Learner(SPEC).step([group_of("u", [(sample("0", 0.0, revision=0, keep_rate=rate / 2), 0)], world.block)]).loss_by_task[0]
    assert rarer == pytest.approx(2 * usual, rel=1e-5)


def test_the_logit_is_shifted_by_the_keep_rate_only_for_tasks_with_unanswered_negatives() -> None:
    world, learner = World(0.5), Learner(SPEC)
    interact, like = learner.score_block(exposure_block.select(world.block, [0]), ["0"])[0].tolist()
    one = sample("0", 1.0, revision=1)
    one.labels.add(task="like", value=1.0)
    losses = learner.step([group_of("u", [(one, 0)], world.block)]).loss_by_task
    odds = interact / (1 - interact) / SPEC.negatives.keep_rate
    # A step creates the rows of new ids, within 0.01 of the default that scoring reads.
    assert losses[0] == pytest.approx(-math.log(odds / (1 + odds)), rel=2e-2)
    assert losses[1] == pytest.approx(-math.log(like), rel=2e-2)


def test_user_dropout_is_a_function_of_the_samples() -> None:
    samples = groups(64)
    config = LearnerConfig(user_dropout=0.5)
    one, two, without = Learner(SPEC, config), Learner(SPEC, config), Learner(SPEC)
    for learner in (one, two, without):
        learn(learner, samples)
    assert one.state_hash() == two.state_hash() != without.state_hash()


def test_forgotten_users_read_the_default_row() -> None:
    learner = Learner(SPEC)
    learn(learner, groups(40))
    assert len(learner.tables["user"]) > 0
    learner.forget_users()
    assert len(learner.tables["user"]) == 0
    learn(learner, groups(40))


def test_the_gradient_norm_is_that_of_network_and_rows_and_zero_when_nothing_moves() -> None:
    samples = groups(8)
    whole, half, none = (Learner(SPEC, LearnerConfig(loss_unit=unit)).step(samples) for unit in (17.0, 34.0, math.inf))
    assert whole.num_samples == none.num_samples > 0
    assert whole.gradient_norm > 0
    assert half.gradient_norm == pytest.approx(whole.gradient_norm / 2, rel=1e-5)
    assert none.gradient_norm == 0.0
    learner = Learner(SPEC)
    norm = learner.step(samples).gradient_norm
    # After the first step Adagrad's sums hold the squares of the rows' gradients, Adam's first moment a tenth of the network's.
    tables = learner.tables.values()
    of_rows = sum(float((table.accumulators[table.slots_of(table.ids())] - learner.config.accumulator_init).sum()) for table in tables)
    of_network = float(np.square(learner.state_arrays()["dense_opt/first_moment"].astype(np.float64) / 0.1).sum())
    assert of_rows > 0 and of_network > 0
    assert norm**2 == pytest.approx(of_rows + of_network, rel=1e-3)


def test_a_flood_of_new_ids_exceeds_max_rows_by_an_eighth_and_one_step_at_most() -> None:
    """Ten times as many ids as there may be rows, long before the rules are due."""
    raw = SPEC.model_dump(mode="json")
    raw["tables"]["item"]["admission"], raw["tables"]["item"]["eviction"] = {}, {"max_rows": 80}
    learner, block, largest = Learner(FeatureSpec.parse(raw)), groups(1)[0].features_block, 0
    for step in range(200):
        learner.step([group_of("u", [(sample(f"i{step}-{number}", 1.0, revision=1), 0)], block) for number in range(4)])
        largest = max(largest, len(learner.tables["item"]))
    assert 80 < largest <= 94
    assert learner.steps < learner.config.evict_every_steps


def test_an_event_weighs_the_same_whether_its_negatives_are_drawn_or_are_events_themselves() -> None:
    seen = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"negatives": {"source": "impressions", "keep_rate": 1.0}})
    of_event = 1 + round(NUM_OTHERS * SPEC.negatives.keep_rate)
    assert (LearnerConfig.of(SPEC).loss_unit, LearnerConfig.of(seen, seed=3)) == (of_event, LearnerConfig(loss_unit=1.0, seed=3))


def test_rates_of_the_spec_are_those_of_the_live_learner_and_keep_its_bits_where_they_are_the_defaults() -> None:
    rates = {"dense_rate": 0.004, "user_rate": 0.3, "init_scale": 0.02}
    given = FeatureSpec.parse(SPEC.model_dump(mode="json") | {"learning": rates})
    live = make_learner(given)
    assert {name: getattr(live.config, name) for name in rates} == rates
    assert live.config.item_rate == LearnerConfig().item_rate and make_learner(SPEC).config == LearnerConfig()
    state = Learner(SPEC)
    learn(state, groups(16))
    live.load_state_arrays(state.state_arrays())
    assert live.state_hash() == state.state_hash(), "weights mean the same at any rate"
    learn(live, groups(32)[16:])
    learn(state, groups(32)[16:])
    assert live.state_hash() != state.state_hash()
