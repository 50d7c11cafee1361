"""Refuses breaking changes of the protos since an earlier commit, but for those that protos/breaks.txt states with a reason.

`make protos-check` runs it: `python protos/breaks.py BUF AGAINST [OLDEST]`. A line of the statement is stale when its change shows neither
since AGAINST nor since OLDEST, the earliest commit that any check compares with: a branch that left main behind a break keeps the line that
a fresh clone of main, which looks further back, still needs. Standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

STATEMENT = Path("protos/breaks.txt")
# buf counts the first package name for Go or Java as a change of it. A commit without any has none that could break; from then on each is
# kept.
FIRST_OPTIONS = "[FILE_SAME_GO_PACKAGE, FILE_SAME_JAVA_PACKAGE, FILE_SAME_JAVA_MULTIPLE_FILES]"
_BUF_FOUND_SOME = 100
_TO_BE_WRITTEN = "REASON"


class Break(NamedTuple):
    """A breaking change, as buf says it; `file` is "-" where buf names none."""

    rule: str
    file: str
    message: str

    def __str__(self) -> str:
        return " | ".join(self)


class Refused(Exception):
    """The check fails; the message says why and what to do."""


def breaks_since(buf: str, commit: str) -> set[Break]:
    """Return what buf finds. Raises Refused when it cannot compare."""
    has_options = subprocess.run(["git", "grep", "-q", "^option go_package", commit, "--", "protos"], check=False).returncode == 0
    config = Path("buf.yaml").read_text(encoding="utf-8")
    if not has_options:
        config = config.replace("    - FILE\n", f"    - FILE\n  except: {FIRST_OPTIONS}\n")
    done = subprocess.run(
        [buf, "breaking", "--config", config, "--against", f".git#ref={commit}", "--against-config", config, "--error-format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, _BUF_FOUND_SOME):
        raise Refused(f"buf breaking against {commit} failed: {done.stderr.strip() or done.stdout.strip()}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return {Break(each["type"], each.get("path", "-").removeprefix("protos/"), " ".join(each["message"].split())) for each in found}


def stated(lines: Iterable[str]) -> set[Break]:
    """Return what a statement holds. Raises Refused at a line that is none."""
    found: set[Break] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{STATEMENT}:{number}"
        *words, reason = [word.strip() for word in line.split(" | ")]
        if len(words) != len(Break._fields) or not all(words):
            raise Refused(f"{where}: {line.strip()!r} is not RULE | FILE | MESSAGE | REASON")
        if not reason or reason == _TO_BE_WRITTEN:
            raise Refused(f"{where}: say why the change is meant, in place of {reason!r}")
        if Break(*words) in found:
            raise Refused(f"{where}: the change stands above already")
        found.add(Break(*words))
    return found


def check(buf: str, against: str, oldest: str) -> int:
    """Return how many meant breaks there are. Raises Refused."""
    meant = stated(STATEMENT.read_text(encoding="utf-8").splitlines() if STATEMENT.exists() else ())
    found = breaks_since(buf, against)
    unmeant = sorted(found - meant)
    if unmeant:
        told = "\n".join(f"  {each} | {_TO_BE_WRITTEN}" for each in unmeant)
        raise Refused(f"{len(unmeant)} breaking change(s). Take them back or, where they are meant, state each in {STATEMENT}:\n{told}")
    stale = meant - found
    if stale and oldest and oldest != against:
        stale -= breaks_since(buf, oldest)
    if stale:
        told = "\n".join(f"  {each}" for each in sorted(stale))
        raise Refused(f"{STATEMENT} states what is no change since {against}{f' or {oldest}' if oldest else ''}: take it out\n{told}")
    return len(meant & found)


def main() -> int:
    """Check, say what was found, and return the exit code."""
    buf, against, oldest = (*sys.argv[1:4], "")[:3]
    try:
        num_meant = check(buf, against, oldest)
    except Refused as refused:
        print(f"protos-check: {refused}", file=sys.stderr)
        return 1
    if num_meant:
        print(f"protos-check: {num_meant} breaking change(s) are meant ({STATEMENT})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
