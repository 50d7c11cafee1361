"""What all samples about one shown item sum to, exactly; needs no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from tunemesh.samples.v1.sample_pb2 import Sample, SampleGroup, SampleRecord, TaskLabel

from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.batch import FeatureStates
from services.trainer.group_columns import GroupColumns, columns_of, loss_weights
from services.trainer.samples import without_repeated_opinions
from services.trainer.targets import says_something_new
from streams.joiner import codec
from streams.joiner.core import JoinerPartition
from streams.joiner.model import JoinConfig
from streams.joiner.model import SampleGroup as Joined
from streams.partitioned.records import Record
from tests.unit.streams.joiner.bench import T0
from tests.unit.streams.partitioned.test_intake import an_intake

WINDOW, HORIZON = 10_000, 50_000
KEEP_RATE = 0.25  # sums of it are exact
# Of `interact` a rating says 1 and a play says 1 or 0; of `like` a rating alone says something; a look says nothing.
SPEC = FeatureSpec.parse(
    {
        "format": 1,
        "model": "ranker",
        "tables": {"user": {"dim": 8}, "item": {"dim": 8}},
        "kinds": {"rating": {"value_range": [1, 5]}, "play": {}, "look": {}},
        "tasks": [
            {"name": "interact", "labels": {"rating": 1, "play": {"at_least": 30}}, "unanswered": 0},
            {"name": "like", "labels": {"rating": {"at_least": 4}}},
        ],
        "negatives": {"keep_rate": KEEP_RATE},
        "blend": {"interact": 1.0},
    }
)
ITEMS = tuple(str(number) for number in range(12))
BLOCK = exposure_block.encode(FeatureStates(SPEC, dict.fromkeys(ITEMS, ("films",))).features("u", ITEMS), SPEC.schema_hash)


def some_acts(random_: random.Random) -> list[Feedback]:
    """Up to eight acts about few of the items, in the order in which they are read, which is not quite the order of acceptance."""
    acts = []
    for number in range(random_.randrange(9)):
        kind = random_.choice(["rating", "play", "look"])
        value = {"rating": float(random_.randrange(1, 6)), "play": random_.choice([3.0, 90.0]), "look": 1.0}[kind]
        acts.append(
            Feedback(
                feedback_id=f"f{number}",
                request_id="r",
                user_id="u",
                item_id=random_.choice(ITEMS[:4]),
                kind=kind,
                value=value,
                accepted_at_ms=T0 + random_.choice([10, 500, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + HORIZON - 1]),
            )
        )
    return sorted(acts, key=lambda act: act.accepted_at_ms + random_.randrange(600))


def joined(acts: Sequence[Feedback], exposure_is_late: bool) -> list[GroupColumns]:
    """Return all that the joiner emits about one request."""
    joiner = JoinerPartition(SPEC, JoinConfig(window_ms=WINDOW, late_horizon_ms=HORIZON, tick_gap_ms=500), an_intake())
    emissions = []

    def expose() -> None:
        value = Exposure(
            request_id="r", user_id="u", exposed_at_ms=T0, item_ids=ITEMS, features_block=BLOCK, schema_hash=SPEC.schema_hash
        )  # fmt: skip
        emissions.extend(joiner.on_exposure(value, Record("exposures.v1", 0, 0, None, b"", ())))

    if not exposure_is_late:
        expose()
    for offset, act in enumerate(acts):
        if exposure_is_late and offset == len(acts) - 1:
            expose()
        emissions += joiner.on_feedback(act, Record("feedback.v1", 0, offset, None, b"", ()))
        emissions += joiner.on_tick(act.accepted_at_ms, (1, len(acts)))[0]
    if exposure_is_late and not acts:
        expose()
    emissions += joiner.on_tick(T0 + 10 * (WINDOW + HORIZON), (1, len(acts)))[0]
    return [columns_of(SPEC, SampleRecord.FromString(codec.write_group(one)).group) for one in emissions if isinstance(one, Joined)]


def net(groups: Sequence[GroupColumns]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the sum of the weights towards 1 and towards 0 by item and task; nothing where both are 0."""
    ones_BT, zeros_BT = loss_weights(groups)
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    rows = [item_id for group in groups for item_id in group.item_ids]
    for row, item_id in enumerate(rows):
        for column, task in enumerate(SPEC.task_names):
            ones, zeros = sums.get((item_id, task), (0.0, 0.0))
            sums[item_id, task] = ones + float(ones_BT[row, column]), zeros + float(zeros_BT[row, column])
    return {key: both for key, both in sums.items() if both != (0.0, 0.0)}


def last_opinions(acts: Sequence[Feedback]) -> dict[tuple[str, str], tuple[float, float]]:
    """The join as a plain restatement: of each task, what was said last, by the time of acceptance and then by reading."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for act in sorted(acts, key=lambda each: each.accepted_at_ms):
        if act.kind == "rating":
            found[act.item_id, "interact"] = (1.0, 0.0)
            found[act.item_id, "like"] = (1.0, 0.0) if act.value >= 4 else (0.0, 1.0)
        elif act.kind == "play":
            found[act.item_id, "interact"] = (1.0, 0.0) if act.value >= 30 else (0.0, KEEP_RATE)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_all_that_is_said_about_an_item_sums_to_the_one_sample_of_the_last_opinion(seed: int) -> None:
    random_ = random.Random(seed)
    num_revised = 0
    for _ in range(250):
        acts = some_acts(random_)
        groups = joined(acts, exposure_is_late=random_.random() < 0.2)
        answered = {act.item_id for act in acts}
        sums = {key: both for key, both in net(groups).items() if key[0] in answered}
        assert sums == last_opinions(acts)
        kept = [rest for group in groups if (rest := without_repeated_opinions(group)) is not None]
        assert {key: both for key, both in net(kept).items() if key[0] in answered} == sums
        num_revised += len(acts) - len(answered)
    assert num_revised > 300


def test_a_negative_of_an_item_that_nobody_answered_stays_one() -> None:
    assert set(net(joined([], exposure_is_late=False)).values()) == {(0.0, 1.0)}


def revised(before: float, after: float) -> Sample:
    return Sample(
        item_id="1",
        revision=2,
        keep_rate=1.0,
        labels=[TaskLabel(task="like", value=after)],
        replaces=[TaskLabel(task="like", value=before)],
    )


def group_of(rows: Sequence[tuple[Sample, int]]) -> SampleGroup:
    """Return a group of the samples, each with the row of the block that is its item's."""
    return SampleGroup(
        schema_hash=SPEC.schema_hash,
        features_block=exposure_block.select(BLOCK, [row for _, row in rows]),
        samples=[sample for sample, _ in rows],
    )


def test_a_repeated_opinion_teaches_nothing_and_is_no_occurrence() -> None:
    assert not says_something_new(revised(1.0, 1.0))
    assert says_something_new(revised(1.0, 0.0))
    assert says_something_new(Sample(revision=1, labels=[TaskLabel(task="like", value=1.0)]))
    group = columns_of(SPEC, group_of([(revised(0.0, 0.0), 1)]))
    assert without_repeated_opinions(group) is None


def test_of_a_group_in_which_one_opinion_is_new_the_rest_keeps_its_own_features() -> None:
    group = columns_of(SPEC, group_of([(revised(0.0, 0.0), 1), (revised(0.0, 1.0), 2)]))
    rest = without_repeated_opinions(group)
    assert rest is not None
    alone = columns_of(SPEC, group_of([(revised(0.0, 1.0), 2)]))
    np.testing.assert_array_equal(rest.features.items_NF, alone.features.items_NF)
    assert rest.meanings == alone.meanings and rest.item_ids == alone.item_ids


def test_the_learner_needs_the_weights_as_float32() -> None:
    ones_BT, zeros_BT = loss_weights([columns_of(SPEC, group_of([(revised(1.0, 0.0), 1)]))])
    assert (ones_BT.dtype, zeros_BT.dtype, ones_BT.shape) == (np.float32, np.float32, (1, 2))
    assert (ones_BT.tolist(), zeros_BT.tolist()) == ([[0.0, -1.0]], [[0.0, 1.0]])
