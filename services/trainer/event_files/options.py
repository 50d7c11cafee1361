"""The options that say where the files of events are and how they are read, for all commands that read them."""

from __future__ import annotations

import argparse
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.trainer.event_files.load import Names
from services.trainer.event_files.parts import ReadOptions
from services.trainer.event_files.times import UNIT_NAMES

MAX_ANSWER_WINDOW_S = 366 * 86_400


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a command line."""
    parser.add_argument(
        "--data", required=True, help="file, folder, pattern or fsspec URL of events: Parquet, ORC, Arrow, CSV or JSON lines"
    )
    parser.add_argument("--spec", type=Path, required=True, help="feature spec (YAML)")
    parser.add_argument("--users", help="file or folder of attributes of users: user_id, what the spec's features read[, time]")
    parser.add_argument("--items", help="the same of items: item_id, …; its title and categories are read as well")
    parser.add_argument(
        "--columns", default="", help="what the files call their columns where they do not call them so: user_id=user,kind=action"
    )
    parser.add_argument("--time-unit", choices=UNIT_NAMES, help="of a column `time` of numbers; recognised when absent")
    parser.add_argument(
        "--answer-window-seconds",
        type=float,
        help="of specs whose negatives are impressions: an act has a row of its own, and answers an impression up to so long before it;"
        " 0: the row of an impression says what became of it",
    )
    parser.add_argument("--category-separator", help="between names in a text of `categories`; recognised when absent")


def read_options(given: argparse.Namespace) -> ReadOptions:
    """Return what a command line says of how to read.

    Raises:
        ConfigurationError: --columns is of another form, or --answer-window-seconds no time.
    """
    window_s = given.answer_window_seconds
    if window_s is not None and not 0 <= window_s <= MAX_ANSWER_WINDOW_S:
        raise ConfigurationError(f"--answer-window-seconds must be within 0 and {MAX_ANSWER_WINDOW_S:,} (a year)")
    return ReadOptions(
        time_unit=given.time_unit,
        category_separator=given.category_separator,
        names=Names.parse(given.columns),
        answer_window_ms=None if window_s is None else round(window_s * 1e3),
        users=given.users,
        items=given.items,
    )
