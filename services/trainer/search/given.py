"""What a process of a search begins with: the space from its files, and the events in three parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from services.common.platform.errors import ConfigurationError
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.history import History, read_history, remarks
from services.trainer.event_files.options import read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.replay_order import BatchConfig, order_remarks
from services.trainer.search.measure import Config
from services.trainer.search.parts import Parts, divide
from services.trainer.search.space import Space, load_space


@dataclass(frozen=True, slots=True)
class Given:
    """What a process of a search begins with."""

    space: Space
    history: History
    parts: Parts
    config: Config


def begin(options: argparse.Namespace, work: WorkFolder, *, say: Callable[[str], None]) -> Given:
    """Read spec, space and events.

    Args:
        options: of the command.
        work: for events that do not stay in memory.
        say: is told what is read, and what of it is not as it might be.
    Raises:
        ConfigurationError: they cannot be read, or do not fit together.
    """
    start = FeatureSpec.load(options.spec)
    space = load_space(options.space, yaml.safe_load(Path(options.spec).read_text(encoding="utf-8")), start)
    if options.task is not None and options.task not in start.task_names:
        raise ConfigurationError(f"--task {options.task}: {options.spec} has no such task; it has {', '.join(start.task_names)}")
    return with_events(options, space, work, say=say)


def with_events(options: argparse.Namespace, space: Space, work: WorkFolder, *, say: Callable[[str], None]) -> Given:
    """Read the events for a space that is known. Arguments and errors as of `begin`."""
    history = read_history(options.data, space.start, read_options(options), work=work, say=say)
    batch = BatchConfig(active_users=options.active_users, seed=options.seed)
    say("\n".join((*remarks(history), *order_remarks(history.interactions, batch))))
    config = Config(batch=batch, seed=options.seed, max_scored=options.scored_events)
    return Given(space, history, divide(history, validation=options.validation, test=options.held_out), config)
