"""The joiner against random logs, random interleavings and crashes at random points, compared with a plain re-statement of the join."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from services.common.events import dead_letter_reasons
from services.common.events.exposure import Exposure
from services.common.events.feedback import Feedback
from services.common.platform.ids import sample_id
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.labels import Label, keep_negative, labels_for
from streams.joiner.core import JoinerPartition
from streams.joiner.model import Cut, Emission, JoinConfig, Resume, Sample, SampleGroup
from streams.partitioned.records import DeadLetter, Record
from tests.unit.streams.joiner.bench import SEEN_SPEC, SPEC, T0
from tests.unit.streams.partitioned.test_intake import ALLOWANCE, an_intake

WINDOW, HORIZON = 2_000, 4_000
CONFIG = JoinConfig(window_ms=WINDOW, late_horizon_ms=HORIZON, tick_gap_ms=500)
ITEMS = tuple(f"i{number}" for number in range(6))


@dataclass
class World:
    """Two logs whose records appear at their append times, and what was written to the output."""

    exposures: list[tuple[int, Exposure]]
    feedback: list[tuple[int, Feedback]]
    written: list[tuple[int, Emission | Cut]] = field(default_factory=list)  # with the wall clock
    committed: tuple[int, int] = (0, 0)
    num_crashes: int = 0
    spec: FeatureSpec = SPEC

    def end(self, log: list, now_ms: int) -> int:
        return next((index for index, (appended_ms, _) in enumerate(log) if appended_ms > now_ms), len(log))

    def resume(self) -> Resume:
        last = next((item for _, item in reversed(self.written) if isinstance(item, Cut)), None)
        return Resume(last.feedback_position, last.watermark_ms, last.exposures_committable) if last else Resume()


def a_world(random_: random.Random, spec: FeatureSpec = SPEC, *, num_requests: int = 40) -> World:
    """Appends lag the events by less than the allowance, as long as the senders behave; some exposures come much later, some never."""
    exposures: list[tuple[int, Exposure]] = []
    feedback: list[tuple[int, Feedback]] = []
    for number in range(num_requests):
        at = T0 + random_.randrange(20_000)
        # Some requests are retries of one another: within the window, just at its end, or long after it.
        key = f"k{number % 7}" if random_.random() < 0.5 else ""
        if key and exposures and random_.random() < 0.5:
            at = random_.choice(exposures)[1].exposed_at_ms + random_.choice([1, WINDOW - 1, WINDOW, WINDOW + 1])
        exposure = Exposure(
            request_id=f"r{number}", user_id=f"u{number % 7}", exposed_at_ms=at, item_ids=ITEMS, features_block=b"x",
            schema_hash=SPEC.schema_hash, idempotency_key=key,
        )  # fmt: skip
        # The router's exposure log is asynchronous; of a retry that comes to it later than the allowance nothing is promised.
        log_delay = random_.choice([5, 100, 250] if key else [5, 100, 250, 1_500])
        if random_.random() < 0.9:
            exposures.append((at + log_delay, exposure))
            if random_.random() < 0.1:
                exposures.append((at + log_delay + 50, exposure))
        for _ in range(random_.choice([0, 0, 1, 1, 2, 5])):
            accepted = at + random_.choice([10, 300, WINDOW - 1, WINDOW, WINDOW + 500, WINDOW + HORIZON - 1, WINDOW + HORIZON])
            act = Feedback(
                feedback_id=f"f{len(feedback)}", request_id=exposure.request_id, user_id=exposure.user_id,
                item_id=random_.choice([*ITEMS, "not shown"]),
                kind=random_.choice(["rating", "click", "impression", "impression"] if spec is SEEN_SPEC else ["rating", "click"]),
                value=float(random_.randrange(1, 6)), accepted_at_ms=accepted,
            )  # fmt: skip
            feedback.append((accepted + random_.randrange(0, ALLOWANCE), act))
            if random_.random() < 0.15:
                feedback.append((accepted + random_.randrange(0, ALLOWANCE), act))
    return World(sorted(exposures, key=lambda pair: pair[0]), sorted(feedback, key=lambda pair: pair[0]), spec=spec)


def run_once(world: World, random_: random.Random, now_ms: int, steps: int | None) -> int:
    """Read, tick and write from the last commit until `steps` steps are done (None: until everything is over). Returns the wall clock."""
    joiner = JoinerPartition(world.spec, CONFIG, an_intake(world.committed), world.resume())
    at_exposure, at_feedback = world.committed
    outbox: list[Emission | Cut] = []
    # A joiner that starts late finds much to read before the next tick; one that keeps up, little.
    read_ahead = random_.choice([1, 3, 50])
    done = 0
    while steps is None or done < steps:
        done += 1
        if random_.random() < 0.4:
            now_ms += random_.choice([1, 20, 400, 1_000])
        for _ in range(random_.randrange(read_ahead + 1)):
            ends = world.end(world.exposures, now_ms), world.end(world.feedback, now_ms)
            if random_.random() < 0.5 and at_exposure < ends[0]:
                exposure = world.exposures[at_exposure][1]
                outbox += joiner.on_exposure(exposure, Record("exposures.v1", 0, at_exposure, None, b"", ()))
                at_exposure += 1
            elif at_feedback < ends[1]:
                feedback = world.feedback[at_feedback][1]
                outbox += joiner.on_feedback(feedback, Record("feedback.v1", 0, at_feedback, None, b"", ()))
                at_feedback += 1
        if random_.random() < 0.3:
            emissions, cut = joiner.on_tick(now_ms, (world.end(world.exposures, now_ms), world.end(world.feedback, now_ms)))
            outbox += [*emissions, cut]
            over = T0 + 20_000 + WINDOW + HORIZON + 10 * ALLOWANCE + WINDOW + HORIZON
            is_read = at_exposure == len(world.exposures) and at_feedback == len(world.feedback)
            if steps is None and now_ms > over and is_read and not joiner.intake.waiting:
                steps = done
        # Writing is in order, and may lag; a commit follows its tick, sometimes.
        for _ in range(random_.randrange(len(outbox) + 1) if steps != done else len(outbox)):
            item = outbox.pop(0)
            world.written.append((now_ms, item))
            if isinstance(item, Cut) and random_.random() < 0.7:
                assert item.exposures_committable >= world.committed[0] and item.feedback_committable >= world.committed[1]
                world.committed = (item.exposures_committable, item.feedback_committable)
    return now_ms


def run(seed: int, *, crashes: int, spec: FeatureSpec = SPEC) -> World:
    random_ = random.Random(seed)
    world = a_world(random_, spec)
    now_ms = T0
    for _ in range(crashes):
        now_ms = run_once(world, random_, now_ms, random_.randrange(1, 120))
        now_ms += random_.choice([0, 200, 3_000, 15_000])  # the time that the restart takes
    run_once(world, random_, now_ms, None)
    return world


def samples_of(world: World) -> dict[int, Sample]:
    """First of each id, as the trainer takes them; a repetition must be the same but for whether its negative came along earlier."""
    first: dict[int, Sample] = {}
    for _, item in world.written:
        for sample in item.samples if isinstance(item, SampleGroup) else ():
            assert first.setdefault(sample.sample_id, sample) == sample
    return first


def expected(world: World) -> tuple[dict[int, Sample], dict[str, str]]:
    """The join as a plain function of the two logs: samples by id, and reason by feedback id set aside."""
    exposures = {exposure.request_id: exposure for _, exposure in reversed(world.exposures)}
    samples: dict[int, Sample] = {}
    aside: dict[str, str] = {}
    read: dict[tuple[str, str], list[Feedback]] = {}
    seen = {(request_id, item_id) for request_id in exposures for item_id in ITEMS} if world.spec is SPEC else set()
    done: set[str] = set()
    superseded = superseded_of(world)
    for _, act in world.feedback:
        exposure = exposures.get(act.request_id)
        if exposure is None:
            aside[act.feedback_id] = dead_letter_reasons.ORPHAN
        elif act.item_id not in exposure.item_ids:
            aside[act.feedback_id] = dead_letter_reasons.ITEM_NOT_EXPOSED
        elif act.accepted_at_ms >= exposure.exposed_at_ms + WINDOW + HORIZON:
            aside[act.feedback_id] = dead_letter_reasons.TOO_LATE
        elif act.kind == "impression":
            seen.add((act.request_id, act.item_id))
        elif act.feedback_id not in done:
            done.add(act.feedback_id)
            acts = read.setdefault((act.request_id, act.item_id), [])
            before = last_opinions(acts)
            acts.append(act)
            revision = len(acts)
            is_late = revision == 1 and act.accepted_at_ms >= exposure.exposed_at_ms + WINDOW
            negative = sample_id(act.request_id, act.item_id, 0)
            retracts = is_late and (act.request_id, act.item_id) in seen and keep_negative(negative, 0.5)
            row = exposure.item_ids.index(act.item_id)
            if retracts:
                samples[negative] = Sample(negative, row, 0, (("interact", 0.0),), 0.5, False, None)
            identity = sample_id(act.request_id, act.item_id, revision)
            samples[identity] = Sample(identity, row, revision, last_opinions(acts), 1.0, retracts, act, before)
    for exposure in (each for each in exposures.values() if each.request_id not in superseded):
        for row, item_id in enumerate(exposure.item_ids):
            negative = sample_id(exposure.request_id, item_id, 0)
            if (exposure.request_id, item_id) in seen - read.keys() and keep_negative(negative, 0.5):
                samples[negative] = Sample(negative, row, 0, (("interact", 0.0),), 0.5, False, None)
    return samples, aside


def superseded_of(world: World) -> set[str]:
    """Requests with a retry that was exposed before their window's end, by the order of the log and the times of the events."""
    found: set[str] = set()
    latest: dict[tuple[str, str], Exposure] = {}
    known: set[str] = set()
    for _, exposure in world.exposures:
        if exposure.request_id in known or not exposure.idempotency_key:
            continue
        known.add(exposure.request_id)
        earlier = latest.get((exposure.user_id, exposure.idempotency_key))
        if earlier is not None and exposure.exposed_at_ms < earlier.exposed_at_ms + WINDOW:
            found.add(earlier.request_id)
        latest[exposure.user_id, exposure.idempotency_key] = exposure
    return found


def last_opinions(acts: list[Feedback]) -> tuple[Label, ...]:
    """Of each task, what was said last, by the time of acceptance and then by reading."""
    found: dict[str, Label] = {}
    for act in sorted(acts, key=lambda each: each.accepted_at_ms):
        found |= {label.task: label for label in labels_for(SPEC, act.kind, act.value)}
    return tuple(found[task] for task in ("interact", "like") if task in found)


@pytest.mark.parametrize("seed", range(30))
def test_an_undisturbed_run_is_the_plain_join(seed) -> None:
    check(run(seed, crashes=0))


@pytest.mark.parametrize("seed", range(1_000, 1_120))
def test_crashes_at_any_point_change_no_sample_and_lose_no_feedback(seed) -> None:
    check(run(seed, crashes=seed % 5 + 1))


@pytest.mark.parametrize("seed", range(4_000, 4_060))
def test_an_outage_of_the_broker_makes_no_orphan_of_what_comes_behind_it(seed) -> None:
    """Nothing is appended for four seconds; then come the feedback that producers held, and the exposures that the router held."""
    random_ = random.Random(seed)
    world = a_world(random_)
    begin, end = T0 + 5_000, T0 + 9_000
    last = end + WINDOW - 500  # the router has written what it held, and goes on
    world.feedback = sorted(
        ((end + random_.randrange(400) if begin <= at < end else at, act) for at, act in world.feedback), key=lambda pair: pair[0]
    )
    held = sum(begin <= at < end for at, _ in world.exposures)
    places = iter(sorted(random_.randrange(end, last) for _ in range(held)))
    world.exposures = [(next(places) if begin <= at < end else max(at, last) if at >= end else at, one) for at, one in world.exposures]
    now_ms = T0
    for _ in range(seed % 3):
        now_ms = run_once(world, random_, now_ms, random_.randrange(1, 120)) + 200
    run_once(world, random_, now_ms, None)
    exposed = {one.request_id: one.exposed_at_ms for _, one in world.exposures}
    # Of a request that was retired by the time, nobody knows any more that there was one; what was there before the outage waits in it.
    retired = {act.feedback_id for at, act in world.feedback if at >= exposed.get(act.request_id, at) + WINDOW + HORIZON}
    retired |= {act.feedback_id for at, act in world.feedback if at < begin}
    letters = {item.feedback_id: item.reason for _, item in world.written if isinstance(item, DeadLetter)}
    orphans = {name for name, reason in letters.items() if reason == dead_letter_reasons.ORPHAN}
    alone = {act.feedback_id for _, act in world.feedback if act.request_id not in exposed}
    assert alone <= orphans <= alone | retired


@pytest.mark.parametrize("seed", range(3_000, 3_040))
def test_crashes_change_no_sample_where_negatives_come_of_impressions(seed) -> None:
    world = run(seed, crashes=seed % 4, spec=SEEN_SPEC)
    assert any(act.kind == "impression" for _, act in world.feedback)
    check(world)


def check(world: World) -> None:
    samples, aside = expected(world)
    got = samples_of(world)
    assert set(got) == set(samples)
    assert got == samples
    letters = {item.feedback_id: item.reason for _, item in world.written if isinstance(item, DeadLetter)}
    # After its request is retired, feedback that is too late can only be seen as an orphan: which of the two depends on timing.
    letters = {
        name: aside[name] if reason == dead_letter_reasons.ORPHAN and aside.get(name) == dead_letter_reasons.TOO_LATE else reason
        for name, reason in letters.items()
    }
    assert letters == aside
    everybody = {act.feedback_id for _, act in world.feedback if act.kind != "impression" or act.feedback_id in aside}
    assert {sample.feedback.feedback_id for sample in got.values() if sample.feedback} | set(letters) == everybody


@pytest.mark.parametrize("seed", range(2_000, 2_060))
def test_a_tick_claims_no_feedback_that_was_not_written_before_it(seed) -> None:
    world = run(seed, crashes=seed % 4)
    in_log_ms: dict[str, int] = {}
    for appended_ms, exposure in world.exposures:
        in_log_ms.setdefault(exposure.request_id, appended_ms)
    # A tick waits for an exposure that comes to the log within the allowance, not for a late one or one that never comes.
    prompt = [
        act for _, act in world.feedback if act.request_id in in_log_ms and in_log_ms[act.request_id] <= act.accepted_at_ms + ALLOWANCE
    ]
    assert 0 < len(prompt) <= len(world.feedback)
    done: set[str] = set()
    for now_ms, item in world.written:
        if isinstance(item, SampleGroup):
            done |= {sample.feedback.feedback_id for sample in item.samples if sample.feedback}
        elif isinstance(item, DeadLetter):
            done.add(item.feedback_id)
        elif isinstance(item, Cut):
            claimed = {act.feedback_id for act in prompt if act.accepted_at_ms <= item.watermark_ms}
            assert claimed <= done, (now_ms, item)
            below = {act.feedback_id for _, act in world.feedback[: item.feedback_position]}
            assert below <= done, (now_ms, item)


def test_the_checks_notice_a_joiner_that_commits_too_much(monkeypatch) -> None:
    honest = JoinerPartition._cut

    def hasty(joiner: JoinerPartition, tick: int) -> Cut:
        cut = honest(joiner, tick)
        return replace(cut, feedback_committable=joiner.intake.feedback.next_offset)

    monkeypatch.setattr(JoinerPartition, "_cut", hasty)
    failures = 0
    for seed in range(1_000, 1_040):
        try:
            check(run(seed, crashes=3))
        except AssertionError:
            failures += 1
    assert failures > 20
