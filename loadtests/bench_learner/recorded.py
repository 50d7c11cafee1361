"""The sample groups that the demo makes of MovieLens, as the bytes that the joiner writes, in a file that any checkout can read."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from tunemesh.samples.v1.sample_pb2 import SampleRecord

from loadtests.movielens import ACTIVE_USERS, CandidateDrawer, load_films, load_ratings, overlaid_sessions
from loadtests.offline_replay import BASE_FRACTION, Event, interaction_of, negative_group, positive_group
from services.common.events import envelope
from services.common.platform.ids import uuid7
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.batch import FeatureStates
from services.trainer.replay_order import BatchConfig, replay_order

_FEATURE_LAG_EVENTS = 30
_WINDOW_EVENTS = 200
_BASE_MS = 1_700_000_000_000
_EVENT_MS = 8


def record_demo(spec: FeatureSpec, path: Path, num_events: int, events_per_tick: int) -> int:
    """Write the groups of `num_events` live events, positives at once and negatives as their window closes; return the number of samples.

    The file holds per group its record of samples.v1, a traceparent, the tick that it stands before, and a hash of its user.
    """
    films, ratings = load_films(), load_ratings()
    cut = round(len(ratings) * BASE_FRACTION)
    states = FeatureStates(spec, {film.item_id: film.categories for film in films.values()})
    placed = replay_order([interaction_of(rating) for rating in ratings[:cut]], BatchConfig(active_users=ACTIVE_USERS))
    drawer = CandidateDrawer(list(films), seed=1)
    for one in placed:
        states.apply(one.interaction)
    for rating in ratings[:cut]:
        drawer.rated(rating)
    events: list[Event] = []
    values: list[bytes] = []
    ticks, users, num_samples = [], [], 0
    live = overlaid_sessions(ratings[cut:])[:num_events]
    for at, timed in enumerate(live):
        if at >= _FEATURE_LAG_EVENTS:
            states.apply(interaction_of(live[at - _FEATURE_LAG_EVENTS].rating))
        item_ids = drawer.draw(timed.rating)
        block = exposure_block.encode(states.features(timed.rating.user_id, item_ids), spec.schema_hash)
        events.append(Event(timed.rating, item_ids, block))
        drawer.rated(timed.rating)
        due = [(at, positive_group(spec, events[at]))]
        closed = negative_group(spec, events[at - _WINDOW_EVENTS]) if at >= _WINDOW_EVENTS else None
        if closed is not None:
            due.append((at - _WINDOW_EVENTS, closed))
        for event, group in due:
            # What the joiner adds, and the learner does not look at.
            group.request_id = uuid7(_BASE_MS + event * _EVENT_MS)
            group.exposed_at_ms = _BASE_MS + event * _EVENT_MS
            group.exposure_offset = event
            group.model_version, group.variant = "1.1", "live"
            for sample in group.samples:
                sample.propensity = 1.0
                if sample.revision:
                    sample.feedback_id, sample.accepted_at_ms = uuid7(_BASE_MS + event * _EVENT_MS), _BASE_MS + event * _EVENT_MS
            values.append(SampleRecord(group=group).SerializeToString())
            ticks.append(at // events_per_tick)
            users.append(zlib.crc32(group.user_id.encode()))
            num_samples += len(group.samples)
    headers = envelope.headers_for(
        "tunemesh.samples.v1.SampleRecord", "/tunemesh/joiner", event_id="0" * 16, traceparent=f"00-{1:032x}-{1:016x}-00"
    )
    np.savez(
        path,
        values=np.frombuffer(b"".join(values), np.uint8),
        ends=np.cumsum([len(value) for value in values]),
        ticks=np.asarray(ticks, np.int64),
        users=np.asarray(users, np.int64),
        header_keys=np.asarray([key for key, _ in headers]),
        header_values=np.asarray([value.decode() for _, value in headers]),
    )
    return num_samples
