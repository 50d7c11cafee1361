"""The whole held-out evaluation of a training: replay, comparison, and the report as JSON and Markdown beside the base."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from services.common.platform.stores import opened_store
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.spec_parts import TaskSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import FeatureStates
from services.trainer.held_out.curves import curves
from services.trainer.held_out.plots import plots
from services.trainer.held_out.replay import MAX_SCORED_EVENTS, begun, score_then_learn
from services.trainer.held_out.report import compare
from services.trainer.held_out.scored import FROZEN, LIVE, Collector, ScoredEvents, contestants, live_alone
from services.trainer.learner import Learner
from services.trainer.replay_order import BatchConfig, replay_order

MIN_EVENTS = 20
"""A held-out part of fewer events says nothing, and is not made."""
JSON_NAME, MARKDOWN_NAME = "report.json", "report.md"
COVERAGE = "simulated, they hold the truth in .94 to .96 of draws from 20 users up (`python tests/interval_coverage.py 2000`)"


def evaluate(
    spec: FeatureSpec,
    live: Learner,
    states: FeatureStates,
    first_part: Sequence[Interaction],
    last_part: Sequence[Interaction],
    item_ids: Sequence[str],
    config: BatchConfig,
    max_scored: int = MAX_SCORED_EVENTS,
) -> dict[str, Any]:
    """Score and learn the last part; return what the report says of it. Arguments as of `scored`."""
    events = scored(spec, live, states, first_part, last_part, item_ids, config, max_scored)
    tasks = compare(events)
    return {
        "coverage": COVERAGE,
        "held_out": described(events, first_part, last_part),
        "tasks": tasks,
        "curves": curves(events, tasks, (LIVE, FROZEN)),
    }


def scored(
    spec: FeatureSpec,
    live: Learner,
    states: FeatureStates,
    first_part: Sequence[Interaction],
    last_part: Sequence[Interaction],
    item_ids: Sequence[str],
    config: BatchConfig,
    max_scored: int = MAX_SCORED_EVENTS,
    *,
    with_others: bool = True,
) -> ScoredEvents:
    """Score and learn the last part. `live` and `states` contain it afterwards.

    Args:
        first_part: what `live` and `states` contain, in the order of time.
        item_ids: the whole catalogue.
        max_scored: about so many events are scored; all are learned.
        with_others: score by frozen weights and by counters, too.
    """
    frozen = None
    if with_others:
        frozen = Learner(spec, live.config)
        frozen.load_state_arrays(live.state_arrays())
    names: Callable[[FeatureSpec, TaskSpec], Sequence[str]] = contestants if with_others else live_alone
    known_users, known_items = ({one.user_id for one in first_part}, {one.item_id for one in first_part})
    collector = Collector(spec, known_users, known_items, names)
    placed = replay_order(last_part, config)
    left_off = begun(spec, first_part, states, is_counted=with_others)
    score_then_learn(spec, live, frozen, placed, item_ids, left_off, config, collector, max_scored)
    return collector.scored()


def described(events: ScoredEvents, first_part: Sequence[Interaction], last_part: Sequence[Interaction]) -> dict[str, Any]:
    """Return what the report says of the held-out part: its size, its users, its time."""
    known_users = {one.user_id for one in first_part}
    begin, end = (f"{datetime.fromtimestamp(one.time_ms / 1e3, UTC):%Y-%m-%d %H:%M}" for one in (last_part[0], last_part[-1]))
    return {
        "first_part": len(first_part),
        "events": len(last_part),
        "scored": len(events),
        "users": len(events.users),
        "new_users": sum(user not in known_users for user in events.users),
        "from": begin,
        "to": end,
    }


def report_files(report: Mapping[str, Any], page: str, tasks: Mapping[str, Any], subject: str) -> dict[str, str]:
    """Return by name the files of a report: JSON, the Markdown page that is given, and the figures that it shows.

    Args:
        report: all of it, "curves" among others.
        page: Markdown.
        tasks: the part of the report that `compare` made.
        subject: whose gains over the others that part holds.
    """
    return {JSON_NAME: as_json(report), MARKDOWN_NAME: page, **plots(tasks, report["curves"], subject)}


def as_json(report: Mapping[str, Any]) -> str:
    """Return a report as the text of its file."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def write_report(url: str, files: Mapping[str, str]) -> None:
    """Write the files of a report, by name, beside a base.

    Raises:
        Unavailable: the store cannot be written.
        ConfigurationError: the URL is of no store that this program knows.
    """
    with opened_store(url, "written") as (filesystem, path):
        for name, content in files.items():
            with filesystem.open(posixpath.join(path, name), "wb") as file:
                file.write(content.encode())
