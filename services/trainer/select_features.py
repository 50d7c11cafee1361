"""Says what each feature is worth: `python -m services.trainer.select_features --data … --spec … --out FILE` (`make select-features`).

Learns the first part of the events in one pass, then exchanges the values of one feature after the other between the held-out exposures and
looks how much the log-loss rises (services.trainer.importance). Writes a table on the terminal and JSON. Changes no spec and no base.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from services.common.platform.errors import ConfigurationError, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.common.platform.stores import opened_store
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.history import read_history, remarks
from services.trainer.event_files.options import add_file_options, read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.held_out.replay import drawn_share, is_drawn
from services.trainer.importance import Exposures, Worth, losses_by_group, units_of, worth_of
from services.trainer.learner import LearnerConfig
from services.trainer.passes import Passes, Task, held_out_groups
from services.trainer.replay_order import BatchConfig, order_remarks
from services.trainer.train import attributes_of, parts_of, print_lines

_EXIT_BAD_CONFIGURATION = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.select_features", description="Say what each feature is worth.")
    add_file_options(parser)
    parser.add_argument("--out", required=True, help="path or fsspec URL of the JSON file to write")
    parser.add_argument("--held-out", type=float, default=0.2, help="the last part of the events, which is not learned")
    parser.add_argument("--scored-events", type=int, default=2_000, help="of more held-out events, about so many are scored")
    parser.add_argument("--permutations", type=int, default=5, help="how often the values of each feature are exchanged")
    parser.add_argument("--active-users", type=int, default=BatchConfig().active_users, help="sessions overlaid at once; 0: order of time")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    work = WorkFolder()
    try:
        if not 0 < options.held_out < 1 or options.permutations < 1 or options.scored_events < 1 or options.active_users < 0:
            raise ConfigurationError(
                "--held-out must be in (0, 1), --permutations and --scored-events at least 1, --active-users not negative"
            )
        _check_place(options.out)
        found, report = measure(FeatureSpec.load(options.spec), options, work)
        # What took hours is shown first: the store may be gone by now.
        print("\n".join(table(found)), flush=True)
        _write(options.out, report)
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    finally:
        work.close()
    print(f"written to {without_credentials(options.out)}: {report['scored']} held-out events of {report['users']} users", flush=True)
    return 0


def measure(spec: FeatureSpec, options: argparse.Namespace, work: WorkFolder) -> tuple[list[Worth], dict[str, Any]]:
    """Train, and measure every feature; return them, the most useful first, and the report.

    Raises:
        ConfigurationError: the events cannot be read, or too few are held out.
    """
    history = read_history(options.data, spec, read_options(options), work=work, say=lambda line: print(line, flush=True))
    config = BatchConfig(active_users=options.active_users, seed=options.seed)
    print_lines((*remarks(history), *order_remarks(history.interactions, config)))
    first_part, last_part = parts_of(history, options.held_out)
    if not last_part:
        raise ConfigurationError("too few events are held out to say anything of features; give more events, or a larger --held-out")
    task = Task(
        spec=spec,
        events=first_part,
        categories=history.categories,
        item_ids=list(dict.fromkeys(one.item_id for one in first_part)),
        attributes=attributes_of(spec, history),
        held_out=last_part,
    )
    trained = Passes(task, config, LearnerConfig.of(spec, seed=options.seed)).run()
    share = drawn_share((one.user_id for one in last_part), len(last_part), options.scored_events)
    events_of = Counter(one.user_id for one in last_part if is_drawn(one.user_id, share))
    groups = [group for group in held_out_groups(task, trained.states, config) if group.user_id in events_of]
    if not groups:
        raise ConfigurationError("no held-out event that is scored says anything of a task; give a larger --scored-events")
    exposures = Exposures(spec, groups)
    before_G = losses_by_group(spec, trained.learner, groups)
    how = {"events_of": events_of, "permutations": options.permutations, "seed": options.seed}
    worth = [worth_of(exposures, trained.learner, unit, before_G, **how) for unit in units_of(spec)]
    worth.sort(key=lambda one: (-one.rise, one.unit.name))
    report = {
        "schema_hash": spec.schema_hash,
        "held_out": len(last_part),
        "scored": events_of.total(),
        "users": len(events_of),
        "loss": float(before_G.sum()) / events_of.total(),
        "permutations": options.permutations,
        "features": [_row(one) for one in worth],
    }
    return worth, report


def _row(worth: Worth) -> dict[str, Any]:
    unit = worth.unit
    return {
        "name": unit.name,
        "declared": unit.is_declared,
        "side": "user" if unit.is_of_user else "item",
        "rise": worth.rise,
        "low": worth.low,
        "high": worth.high,
        "columns": len(unit.columns),
        "rows_of_a_table": unit.keyed is not None or unit.sequence is not None,
        "bytes_an_exposure": worth.bytes_an_exposure,
    }


def table(found: Sequence[Worth]) -> list[str]:
    """Return lines for the terminal: the rise of the loss with its interval, and what the feature costs."""
    width = max(len(one.unit.name) for one in found)
    lines = [f"{'feature':{width}}  {'':8}  side  loss rises by                columns  bytes/100 items"]
    for one in found:
        unit = one.unit
        kind, side = "declared" if unit.is_declared else "built-in", "user" if unit.is_of_user else "item"
        interval = f" [{one.low:+.4f}, {one.high:+.4f}]" if one.low is not None else " of too few users"
        lines.append(
            f"{unit.name:{width}}  {kind}  {side}  {f'{one.rise:+.4f}{interval}':28} {len(unit.columns):7}  {one.bytes_an_exposure:15,.0f}"
        )
    return lines


def _check_place(url: str) -> None:
    """Find out whether a file can stand there, before the work that makes it."""
    with opened_store(url, "read") as (filesystem, path):
        if filesystem.isdir(path):
            raise ConfigurationError(
                f"--out {without_credentials(url)} is a folder; name the file, such as {posixpath.join(path, 'features.json')}"
            )


def _write(url: str, report: dict[str, Any]) -> None:
    with opened_store(url, "written") as (filesystem, path):
        if posixpath.dirname(path):
            filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
        with filesystem.open(path, "wb") as file:
            file.write((json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
