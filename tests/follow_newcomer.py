"""Follows services/trainer/README.md, "From a file of events to a served model", word by word in an empty folder, and checks the result.

    python3 tests/follow_newcomer.py                                # needs what the page says, no more
    python3 tests/follow_newcomer.py --environments /path/to/.venv  # with environments that are there already

The commands, the spec and the client code are those of the page. Checked: the base was trained on the own column, answers are whole and of
the own catalogue, they depend on the own column as it was planted, the feedback was learned, and nothing runs at the end.
Uses the standard library only, so that any Python 3.11 runs it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.follow_readme import ROOT, indented_blocks, run, section

PAGE, TITLE = "services/trainer/README.md", "From a file of events to a served model"
MAX_COMMANDS = 10
LEARNED_WITHIN_S = 60.0


def commands(page: str) -> list[str]:
    """Return the commands of the section."""
    blocks = [block for block in indented_blocks(section(page, TITLE)) if block.startswith("make setup")]
    return blocks[0].splitlines()


def new_files(page: str) -> dict[str, str]:
    """Return the files that the section has its reader make, by path."""
    return dict(re.findall(r"^`([^`]+)`, new:\n\n```\w+\n(.*?)^```$", section(page, TITLE), re.MULTILINE | re.DOTALL))


def follow(page: str, clone: Path, exports: list[str]) -> dict[str, str]:
    """Run the commands as they would be typed into one shell, each after the exports before it; return what each printed.

    Args:
        exports: before all commands; those of the page are added to them.
    Raises:
        SystemExit: one ended with another code than 0. The mesh is stopped all the same.
    """
    said: dict[str, str] = {}
    try:
        for command in commands(page):
            if command.startswith("export "):
                exports.append(command)
            else:
                said[command] = run(command, clone, before="\n".join(exports))
                until = time.monotonic() + LEARNED_WITHIN_S
                while " why " in command and not is_learned(said[command]) and time.monotonic() < until:
                    said[command] = run(command, clone, before="\n".join(exports))
    except BaseException:
        run("make down", clone)
        raise
    return said


def check_report(report: Mapping[str, object]) -> None:
    """Raise SystemExit unless the base was trained on the own columns, and is better than counters."""
    features = report["base"]["features"]  # type: ignore[index]
    known = features["known"]
    if not (0.7 < known["user:city"] < 1.0 and known["item:price"] == 1.0 and "city=Oslo" in features["columns"]):
        raise SystemExit(f"the report does not say that the base was trained on the own columns: {features}")
    gain = report["tasks"]["interact"]["all"]["live_minus"]["items"]["ndcg10"]  # type: ignore[index]
    if not gain["low"] > 0:
        raise SystemExit(f"the base is no better than a counter of items: {gain}")


def check_answers(said: str) -> None:
    """Raise SystemExit unless the answers are whole, of the own catalogue (whose prices they name), and dearer in Oslo than in Rome."""
    found = re.findall(r"^(\w+): (\d+) items, mean price ([\d.]+); model (\S+), (.*)$", said, re.MULTILINE)
    prices = {city: float(price) for city, _, price, _, _ in found}
    if [(int(number), whole) for _, number, _, _, whole in found] != [(10, "whole")] * 2:
        raise SystemExit(f"the answers are not whole: {said}")
    if not prices["Oslo"] > 2 * prices["Rome"]:
        raise SystemExit(f"the answers do not depend on the city as planted: {prices}")


def is_learned(said: str) -> bool:
    """Whether `why` says that what came of an item was learned; it says "not learned yet" before."""
    return re.search(r"=1 learned\s*$", said, re.MULTILINE) is not None


def check_learned(said: str) -> None:
    """Raise SystemExit unless `why` says that the feedback was learned, and that the answer was made of the own columns."""
    if not is_learned(said) or "city=Rome" not in said:
        raise SystemExit(f"the feedback was not learned, or the answer was not made of the own column: {said}")


def check_stopped(clone: Path) -> None:
    """Raise SystemExit when a process of the clone is still there."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            left += [process.name] if f"TUNEMESH_RUN_DIR={clone / 'build' / 'mesh'}".encode() in environment else []
        except OSError:  # it has ended, or is somebody else's
            continue
    if left:
        raise SystemExit(f"still running after make down: {', '.join(left)}")


def main() -> int:
    """Follow the page; return 0."""
    parser = argparse.ArgumentParser(description=f"Follow {TITLE!r} of {PAGE} word by word in an empty folder.")
    parser.add_argument("--environments", type=Path, help="a folder of environments that are installed already, in place of new ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunemesh-newcomer-") as empty:
        clone = Path(empty) / "tunemesh"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        exports = []
        if options.environments is not None:
            # Environments that `make setup` made know where their clone lies; these are of another one.
            (clone / ".venv").symlink_to(options.environments.resolve())
            if subprocess.run(["make", "--question", "setup"], cwd=clone, capture_output=True, check=False).returncode != 0:
                raise SystemExit(
                    f"{options.environments}: is installed from other lock files; `make setup` would change it under its owner"
                )
            exports = ["export PYTHONPATH=$PWD:$PWD/protos/gen"]
        page = (clone / PAGE).read_text(encoding="utf-8")
        for path, content in new_files(page).items():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).write_text(content, encoding="utf-8")
        said = follow(page, clone, exports)
        check_report(json.loads((clone / "build/shop/report.json").read_text(encoding="utf-8")))
        check_answers(next(text for command, text in said.items() if "ask.py" in command))
        check_learned(next(text for command, text in said.items() if " why " in command))
        check_stopped(clone)
    print(f"\n{PAGE} holds: {len(commands(page))} commands", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
