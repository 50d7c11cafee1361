"""The operator's part of the `tunemesh` command: arguments in, one call of this package, a table or JSON out.

    tunemesh why REQUEST_ID                       what the logs say about a recommendation or an answer
    tunemesh rollback llm/TASK|prompt/NAME        one step back (or --to TARGET), and wait until the mesh answers with it
    tunemesh rollback ranker --to TIME|EPOCH.SEQ  back to a checkpoint; later samples are passed over
    tunemesh retrain --from TIME|EPOCH.SEQ        back to a checkpoint; later samples are learned again
    tunemesh pause|resume learning
    tunemesh dlq list [TOPIC] | redrive TOPIC
    tunemesh documents                            which files are searched, refused, or indexed in part, and why
    tunemesh lineage [NAME]                       from which topics and columns features come, and which versions have them

Exit codes: 0 done; 1 not done, with one line on stderr; 2 wrong arguments or configuration.
"""

from __future__ import annotations

import argparse
from typing import Any

_MAX_LISTED = 100
_MAX_REDRIVEN = 1_000


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the operator's commands to a subparsers action; `common` has --run-dir."""
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print one JSON document")
    parents = [common, output]

    why = commands.add_parser("why", parents=parents, help="show what led to an answer, and what came of it")
    why.add_argument("request_id", metavar="REQUEST_ID")
    _set(why, "why")

    rollback = commands.add_parser("rollback", parents=parents, help="take an alias or the ranker back")
    rollback.add_argument("alias", metavar="ALIAS", help="llm/TASK, prompt/NAME, prompt/NAME/LABEL, or ranker")
    rollback.add_argument("--to", default="", metavar="TARGET", help="an adapter, base, vN; of the ranker a time or version: 10m, 3.1207")
    rollback.add_argument("--allow-unjudged", action="store_true", help="even to one that the adapter gate refused or has not judged")
    _set(rollback, "rollback")

    retrain = commands.add_parser("retrain", parents=parents, help="go back to a checkpoint and learn the later samples again")
    retrain.add_argument("--from", dest="since", required=True, metavar="TIME", help="10m (ago), 2026-11-22T09:30, @UNIX_MS, EPOCH.SEQ")
    _set(retrain, "retrain")

    for name, paused in (("pause", True), ("resume", False)):
        switch = commands.add_parser(name, parents=parents, help=f"{name} learning")
        switch.add_argument("what", choices=["learning"])
        switch.set_defaults(is_paused=paused)
        _set(switch, "set_paused")

    letters = commands.add_parser("dlq", help="dead letters").add_subparsers(required=True, metavar="COMMAND")
    listing = letters.add_parser("list", parents=parents, help="count dead letters, or list those of a topic")
    listing.add_argument("topic", nargs="?", default="", metavar="TOPIC", help="the source topic, e.g. feedback.v1")
    _limits(listing, _MAX_LISTED)
    _set(listing, "list_letters")
    redrive = letters.add_parser("redrive", parents=parents, help="put dead letters' records back into their topic, each once")
    redrive.add_argument("topic", metavar="TOPIC", help="the source topic, e.g. feedback.v1")
    redrive.add_argument("--again", action="store_true", help="also those that were put back before and failed again")
    _limits(redrive, _MAX_REDRIVEN)
    _set(redrive, "redrive")

    documents = commands.add_parser("documents", parents=parents, help="show which files are searched, refused, or indexed in part")
    _set(documents, "documents")

    lineage = commands.add_parser("lineage", parents=parents, help="show where features come from and which versions have them")
    lineage.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="a feature, column, source (user:city), topic, or ranker[/EPOCH.SEQ]"
    )
    _set(lineage, "lineage")


def _limits(parser: argparse.ArgumentParser, limit: int) -> None:
    parser.add_argument("--reason", default="", help="only letters with this reason")
    parser.add_argument("--limit", type=_count, default=limit, metavar="N", help=f"at most so many letters, oldest first (default {limit})")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _set(parser: argparse.ArgumentParser, name: str) -> None:
    def run(arguments: argparse.Namespace) -> int:
        # Imported on use: the supervisor and `tunemesh status` need neither gRPC stubs nor numpy.
        from services.mesh.operate import commands

        return commands.run(name, arguments)

    parser.set_defaults(run=run)
