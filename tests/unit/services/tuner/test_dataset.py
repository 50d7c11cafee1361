from collections import Counter

import pytest

from services.common.events.chat import Message
from services.common.platform.errors import InvalidInput
from services.tuner.dataset import TrainingExample, make_dataset, steps_for


def examples(prefix: str, count: int, *, is_replay: bool) -> list[TrainingExample]:
    return [TrainingExample(messages=(Message("user", f"{prefix}{i}?"),), answer=f"{prefix}{i}", is_replay=is_replay) for i in range(count)]


DEMONSTRATIONS = examples("d", 5, is_replay=False)
REPLAY = examples("r", 7, is_replay=True)


def make(**changes):
    arguments = {"num_steps": 10, "batch_size": 8, "replay_share": 0.25, "seed": 3} | changes
    demonstrations, replay = arguments.pop("demonstrations", DEMONSTRATIONS), arguments.pop("replay", REPLAY)
    return make_dataset(demonstrations, replay, **arguments)


def test_every_batch_holds_its_share_of_replay():
    dataset = make()
    for batch in dataset.batches:
        assert [dataset.examples[row].is_replay for row in batch] == [False] * 6 + [True] * 2
    assert dataset.replay_share == 0.25


def test_every_row_is_drawn_once_before_any_comes_again():
    drawn = Counter(row for batch in make(num_steps=10).batches for row in batch)
    demonstrations = [drawn[row] for row in range(5)]
    replay = [drawn[row] for row in range(5, 12)]
    assert demonstrations == [12] * 5
    assert sum(replay) == 20
    assert max(replay) - min(replay) <= 1


def test_the_same_seed_gives_the_same_training_and_another_seed_another():
    assert make() == make()
    assert make().batches != make(seed=4).batches
    assert make().content_hash != make(seed=4).content_hash


def test_the_hash_tells_every_change_of_an_example():
    changed = [*DEMONSTRATIONS[:-1], TrainingExample(messages=DEMONSTRATIONS[-1].messages, answer="other", is_replay=False)]
    assert make().content_hash.startswith("sha256:")
    assert make(demonstrations=changed).content_hash != make().content_hash


def test_rows_that_are_left_out_are_drawn_no_more_and_leave_no_empty_batch():
    dataset = make(batch_size=2, num_steps=5, replay_share=0.0)
    kept = dataset.without({row for batch in dataset.batches[:2] for row in batch})
    assert len(kept.batches) < len(dataset.batches)
    assert all(batch for batch in kept.batches)
    assert kept.num_demonstrations == 1
    assert dataset.without(()) == dataset


def test_without_replay_no_batch_has_any():
    dataset = make(replay=[], replay_share=0.0)
    assert dataset.replay_share == 0.0
    assert all(len(batch) == 8 for batch in dataset.batches)
    assert not any(dataset.examples[row].is_replay for batch in dataset.batches for row in batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demonstrations": []}, "no demonstrations"),
        ({"replay": []}, "no replay examples"),
        ({"replay_share": 0.95}, "leaves no room"),
    ],
)
def test_a_training_that_cannot_be_mixed_is_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        make(**changes)


@pytest.mark.parametrize(("count", "steps"), [(60, 60), (10, 40), (61, 61), (10_000, 600)])
def test_steps_follow_the_number_of_demonstrations_within_bounds(count, steps):
    assert steps_for(count, per_batch=6, num_passes=6.0, least=40, most=600) == steps
