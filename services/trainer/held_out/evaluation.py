"""The whole held-out evaluation of a training: replay, comparison, and the report as JSON and Markdown beside the base."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from services.common.platform.stores import opened_store
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.states import Interaction
from services.trainer.batch import BatchConfig, FeatureStates, replay_order
from services.trainer.held_out.render import markdown
from services.trainer.held_out.replay import MAX_SCORED_EVENTS, begun, score_then_learn
from services.trainer.held_out.report import compare
from services.trainer.held_out.scored import Collector
from services.trainer.learner import Learner

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
    """Score and learn the last part; return what the report says of it. `live` and `states` contain it afterwards.

    Args:
        first_part: what `live` and `states` contain, in the order of time.
        item_ids: the whole catalogue.
    """
    frozen = Learner(spec, live.config)
    frozen.load_state_arrays(live.state_arrays())
    known_users = {interaction.user_id for interaction in first_part}
    collector = Collector(spec, known_users, {interaction.item_id for interaction in first_part})
    placed = replay_order(last_part, config)
    score_then_learn(spec, live, frozen, placed, item_ids, begun(spec, first_part, states), config, collector, max_scored)
    events = collector.scored()
    begin, end = (f"{datetime.fromtimestamp(one.time_ms / 1e3, UTC):%Y-%m-%d %H:%M}" for one in (last_part[0], last_part[-1]))
    return {
        "coverage": COVERAGE,
        "held_out": {
            "first_part": len(first_part),
            "events": len(last_part),
            "scored": len(events),
            "users": len(events.users),
            "new_users": sum(user not in known_users for user in events.users),
            "from": begin,
            "to": end,
        },
        "tasks": compare(events),
    }


def write_report(url: str, report: Mapping[str, Any]) -> None:
    """Write the report beside a base.

    Raises:
        Unavailable: the store cannot be written.
        ConfigurationError: the URL is of no store that this program knows.
    """
    contents = {JSON_NAME: json.dumps(report, indent=1, allow_nan=False) + "\n", MARKDOWN_NAME: markdown(report)}
    with opened_store(url, "written") as (filesystem, path):
        for name, content in contents.items():
            with filesystem.open(posixpath.join(path, name), "wb") as file:
                file.write(content.encode())
