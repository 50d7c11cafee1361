"""Sequences in the trainer: what a row of the past knows of its user's events, what is learned of them, what other specs keep."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import ConfigurationError
from services.common.ranker import exposure_block
from services.common.ranker.declared.hashing import row_key
from services.common.ranker.feature_records import user_key
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.features import Features
from services.common.ranker.networks.registry import NETWORKS
from services.common.ranker.recall_state import Popularity
from services.common.ranker.states import GlobalState, Interaction, UserState
from services.trainer import train
from services.trainer.attribute_history import ALWAYS_MS, AttributeHistory, Versions
from services.trainer.batch import FeatureStates, replay
from services.trainer.held_out.evaluation import JSON_NAME
from services.trainer.importance import Exposures, units_of
from services.trainer.learner import Learner
from services.trainer.replay_order import BatchConfig, replay_order
from streams.features.core import Act, FeaturePartition
from tests.learning import CATEGORIES, KEYED, SEQUENCE, SPEC, groups, interactions, with_features

pytestmark = pytest.mark.ml

T_MS = 1_700_000_000_000
BOUNDS = [0.1, 0.3, 0.6, 0.9]
SEEN = with_features(
    [
        {
            "sequence_feature": {
                "sequence_name": "latest",
                "sequence_length": 5,
                "features": [
                    {"id_feature": {"feature_name": "item", "expression": "sequence:item_id", "embedding_dim": 4}},
                    {"raw_feature": {"feature_name": "value", "expression": "sequence:value", "boundaries": BOUNDS, "embedding_dim": 4}},
                    {"id_feature": {"feature_name": "verdict", "expression": "item:verdict", "embedding_dim": 4}},
                ],
            }
        }
    ]
)
NAMES = {
    np.uint64(row_key(f"latest__{table}", meaning, word)).astype(np.int64): word
    for table, meaning, words in (
        ("item", "word", [f"i{at}" for at in range(20)]),
        ("value", "bucket", map(str, range(5))),
        ("verdict", "word", map(str, range(1, 6))),
        ("verdict", "absent", [""]),
    )
    for word in words
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def acts(count: int = 200) -> list[Interaction]:
    """Three users, two events a second; what an event says of its item stands in the item's attribute `verdict` from the second after."""
    rng = np.random.default_rng(0)
    return [
        Interaction(f"u{rng.integers(3)}", f"i{rng.integers(20)}", "rating", float(rng.integers(1, 6)), T_MS + at // 2 * 1_000)
        for at in range(count)
    ]


def verdicts(events: Sequence[Interaction], *, always: bool = False) -> Versions:
    written = [(one.item_id, ALWAYS_MS if always else one.time_ms, {"verdict": int(one.value)}) for one in events]
    return Versions(sorted(written, key=lambda version: version[1]))


def events_seen(features: Features) -> list[tuple[str, ...]]:
    """The sequence of a request: of each event its item, its value's bucket, what was known of the item."""
    assert features.keys is not None
    words = [NAMES[key] for key in features.keys.sequences[0].events.keys_S.tolist()]
    return list(zip(words[::3], words[1::3], words[2::3], strict=True))


def may_know(events: Sequence[Interaction], asked: Interaction) -> list[tuple[str, ...]]:
    """What a request may know, from the events alone: those of earlier seconds."""
    earlier = [one for one in events if one.time_ms < asked.time_ms]
    told = {one.item_id: str(int(one.value)) for one in earlier}
    mine = [one for one in reversed(earlier) if one.user_id == asked.user_id][:5]
    return [(one.item_id, str(np.searchsorted(BOUNDS, (one.value - 1) / 4, "right")), told[one.item_id]) for one in mine]


def num_leaks(events: Sequence[Interaction], seen: Iterator[Features]) -> int:
    """How many requests know something else than they may."""
    return sum(events_seen(features) != may_know(events, one) for one, features in zip(events, seen, strict=True))


def replayed(events: Sequence[Interaction]) -> Iterator[Features]:
    config = BatchConfig(feature_lag_s=0.0)
    states = FeatureStates(SEEN, CATEGORIES, AttributeHistory(SEEN.plan, Versions(), verdicts(events)))
    for group in replay(SEEN, replay_order(events, config), [f"i{at}" for at in range(20)], states, config, 0):
        yield exposure_block.decode(group.features_block, SEEN)


def test_a_row_sees_earlier_events_alone_with_what_was_known_of_their_items_then() -> None:
    events = acts()
    assert sum(len(may_know(events, one)) == 5 for one in events) > 150
    assert num_leaks(events, replayed(events)) == 0


@pytest.mark.parametrize("leak", ["the event itself is in its user's history", "an item's attributes of later are known at once"])
def test_a_planted_leak_is_found(leak: str) -> None:
    events = acts()

    def leaking() -> Iterator[Features]:
        of_later = leak.startswith("an item")
        states = FeatureStates(SEEN, CATEGORIES, AttributeHistory(SEEN.plan, Versions(), verdicts(events, always=of_later)))
        for one in events:
            if not of_later:
                states.apply(one)
            yield states.features(one.user_id, [one.item_id], one)
            if of_later:
                states.apply(one)

    assert num_leaks(events, leaking()) > 150


def test_without_attributes_or_the_time_of_the_request_a_spec_with_a_sequence_is_refused_and_not_ignored() -> None:
    with pytest.raises(ValueError, match="the sequence 'latest' needs attributes, and the time of the request"):
        FeatureStates(SEEN, CATEGORIES).features("u", ["i1"], acts()[0])
    with pytest.raises(ValueError, match="the sequence 'latest' needs attributes, and the time of the request"):
        FeatureStates(SEEN, CATEGORIES, AttributeHistory(SEEN.plan, Versions(), Versions())).features("u", ["i1"])


@pytest.mark.parametrize("network", NETWORKS)
def test_scores_depend_on_the_events_and_are_the_same_from_a_block_beside_others_and_from_a_state(network: str) -> None:
    spec = with_features([*KEYED, SEQUENCE], network=network)
    learner, every = Learner(spec), groups(48, spec=spec)
    for at in range(0, 48, 8):
        learner.step(every[at : at + 8])
    together = learner.score(every[40:])
    for group, found in zip(every[40:], together, strict=True):
        items = [sample.item_id for sample in group.samples]
        np.testing.assert_allclose(found, learner.score_block(group.features_block, items), atol=1e-5)
    again = Learner(spec)
    again.load_state_arrays(learner.state_arrays())
    assert again.state_hash() == learner.state_hash()
    exposures = Exposures(spec, every[40:])
    unit = next(unit for unit in units_of(spec) if unit.name == "latest")
    other = learner.score(list(exposures.exchanged(unit, np.random.default_rng(0))))
    assert max(np.abs(one - two).max() for one, two in zip(other, together, strict=True)) > 1e-5
    assert 0 < exposures.bytes_of(unit) < 10_000


def scores(learner: Learner, spec: FeatureSpec) -> list[np.ndarray]:
    return learner.score(groups(48, spec=spec)[40:])


def test_a_spec_that_adds_a_sequence_scores_as_before_and_one_that_drops_it_keeps_all_else() -> None:
    plain, more = with_features(KEYED), with_features([SEQUENCE, *KEYED])
    before = Learner(plain)
    for at in range(0, 40, 8):
        before.step(groups(48, spec=plain)[at : at + 8])
    added = Learner(more)
    added.load_state_arrays(before.state_arrays())
    for one, two in zip(scores(before, plain), scores(added, more), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    weights = added.dense_state()
    assert any(name.startswith("sequence_pools.of_latest.") and value.any() for name, value in weights.items()), (
        "what is zero cannot be learned"
    )
    added.step(groups(48, spec=more)[:8])
    dropped = Learner(plain)
    dropped.load_state_arrays(added.state_arrays())
    for name, value in dropped.dense_state().items():
        kept = added.dense_state()[name]
        assert value.size < kept.size or value.tobytes() == kept.tobytes()
    assert set(dropped.tables) == {"user", "item", "both", "hour", "places", "tags"}


def renamed(name: str) -> dict[str, Any]:
    return {"sequence_feature": {**SEQUENCE["sequence_feature"], "sequence_name": name}}


def test_of_several_sequences_each_keeps_its_weights_and_moments_when_one_goes_and_another_comes() -> None:
    two, other = with_features([renamed("a"), renamed("b")]), with_features([renamed("keys"), renamed("b")])
    learner = Learner(two)
    for at in range(0, 40, 8):
        learner.step(groups(48, spec=two)[at : at + 8])
    moved = Learner(other)
    moved.load_state_arrays(learner.state_arrays())
    of_b = [name for name in learner.dense_state() if name.startswith("sequence_pools.of_b.")]
    assert len(of_b) == 3
    spans = {}
    for one in (learner, moved):
        moments, at = one.state_arrays()["dense_opt/second_moment"], 0
        for name, value in one.dense_state().items():
            spans[one, name] = moments[at : (at := at + value.size)]
    for name in of_b:
        assert moved.dense_state()[name].tobytes() == learner.dense_state()[name].tobytes()
        assert spans[moved, name].tobytes() == spans[learner, name].tobytes() != bytes(spans[learner, name].nbytes)
    changed = with_features([{"sequence_feature": {**renamed("b")["sequence_feature"], "sequence_length": 5}}])
    with pytest.raises(ConfigurationError, match=r"features.b was .* and is .*give it another name"):
        Learner(changed).load_state_arrays(learner.state_arrays())


def planted(folder: Path, count: int = 4_000, brands: int = 10, users: int = 200) -> tuple[Path, Path]:
    """Write events that are liked iff the item's brand is among those of the user's last five; neither user nor item says so."""
    rng, last, rows = np.random.default_rng(0), dict[int, list[int]](), list[dict[str, Any]]()
    for at in range(count):
        user = int(rng.integers(users))
        latest = last.setdefault(user, [])
        again = bool(latest) and rng.random() < 0.5
        item = (latest[int(rng.integers(len(latest)))] if again else int(rng.integers(brands))) + brands * int(rng.integers(10))
        value = 5 if item % brands in latest else 1
        rows.append({"user_id": f"u{user}", "item_id": item, "kind": "rating", "value": value, "time": T_MS // 1000 + 60 * at})
        latest.insert(0, item % brands)
        del latest[5:]
    items = [{"item_id": item, "brand": f"b{item % brands}"} for item in range(10 * brands)]
    for name, table in (("events", rows), ("items", items)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return folder / "events.csv", folder / "items.csv"


@pytest.mark.parametrize("network", ["dcn_din", pytest.param("deepfm", marks=pytest.mark.deep)])
def test_what_is_planted_in_the_last_events_is_learned_by_the_command(tmp_path: Path, network: str) -> None:
    (events, items), aucs = planted(tmp_path), {}
    brand = {"id_feature": {"feature_name": "brand", "expression": "item:brand", "embedding_dim": 8}}
    sequence = {"sequence_feature": {"sequence_name": "latest", "sequence_length": 5, "features": [brand]}}
    for name, features in (("without", [brand]), ("with", [brand, sequence])):
        path = tmp_path / f"{name}.yaml"
        spec = SPEC.model_dump(mode="json", exclude_defaults=True) | {"format": 2, "features": features, "network": network}
        path.write_text(yaml.safe_dump(spec))
        options = ["--data", str(events), "--items", str(items), "--spec", str(path), "--out", str(tmp_path / name), "--epochs", "3"]
        assert train.main([*options, "--held-out", "0.2"]) == 0
        aucs[name] = json.loads((tmp_path / name / JSON_NAME).read_text())["tasks"]["like"]["all"]["contestants"]["frozen"]["auc"]
    assert aucs["with"]["low"] > aucs["without"]["high"] and aucs["with"]["value"] > aucs["without"]["value"] + 0.15, aucs


def test_the_stream_keeps_the_events_that_the_replay_keeps() -> None:
    spec, events = with_features([SEQUENCE]), acts(60)
    states = FeatureStates(spec, CATEGORIES, AttributeHistory(spec.plan, Versions(), Versions()))
    partition = FeaturePartition(spec, GlobalState(), Popularity(spec.counters.half_lives_events[0]))
    for at, one in enumerate(events):
        states.apply(one)
        assert partition.apply(Act(at, f"f{at}", one), ())
    stored = {key: packed for key, packed in states.records() if key.startswith("tm:u:")}
    for user_id, user in partition.cache.users.items():
        replayed_state = UserState.from_bytes(spec, stored[user_key(user_id)])
        assert UserState.from_bytes(spec, user.to_bytes()).history == replayed_state.history
        assert min(entry.time_ms for entry in replayed_state.history) >= T_MS


def test_replaying_twice_gives_the_same_bytes() -> None:
    spec = with_features([*KEYED, SEQUENCE])
    one, two = (groups(30, spec=spec) for _ in range(2))
    assert [group.SerializeToString() for group in one] == [group.SerializeToString() for group in two]
    assert isinstance(one[0], SampleGroup) and len(interactions(30)) == len(one)
