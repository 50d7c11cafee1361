"""Follows README.md word by word in an empty folder: the two commands, then `make up` and the lines of client code.

    python3 tests/follow_readme.py                  # all of it, in a fresh clone of this commit; needs what README says, no more
    python3 tests/follow_readme.py --skip "make test"

The commands and the code are those of the page, taken from it; nothing else is run but `make down` at the end. Exit code 0 when each step
ended with 0 and the client code printed something. Uses the standard library only, so that any Python 3.11 runs it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def section(page: str, title: str) -> str:
    """Return the part of the page under the heading `title`, without its heading.

    Raises:
        LookupError: there is no such heading.
    """
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"README.md has no section {title!r}")
    return found[1]


def indented_blocks(text: str) -> list[str]:
    """Return the code blocks of a section (indented by four), each without its indent."""
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n") for block in blocks if block.strip()]


def commands(page: str) -> list[str]:
    """Return the commands of "Two commands", without their comments."""
    lines = indented_blocks(section(page, "Two commands"))[0].splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def client_code(page: str) -> str:
    """Return the code of "Ten lines of client code"."""
    return indented_blocks(section(page, "Ten lines of client code"))[0]


def environment() -> dict[str, str]:
    """The variables of a fresh login: none that steer Tunemesh or another Python environment."""
    steering = ("TUNEMESH_", "KAFKA_", "MLFLOW_", "OTEL_", "REDIS_", "TRITON_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}


def run(command: str, folder: Path, *, before: str = "") -> str:
    """Run a command as typed; return what it printed, which is shown as well.

    Args:
        before: what was typed into the same shell before it and still holds, such as exports.
    Raises:
        SystemExit: it ended with another code than 0.
    """
    print(f"\n$ {command}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", f"{before}\n{command}"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = []
    for raw in process.stdout:
        said.append(raw.decode(errors="replace"))
        print(said[-1], end="", flush=True)
    code = process.wait()
    print(f"({command}: {time.monotonic() - started:.0f} s, exit code {code})", flush=True)
    if code != 0:
        raise SystemExit(f"the page's {command!r} ended with {code}")
    return "".join(said)


def main() -> int:
    """Follow the page; return 0."""
    parser = argparse.ArgumentParser(description="Follow README.md word by word in an empty folder.")
    parser.add_argument("--skip", action="append", default=[], metavar="COMMAND", help="a command of the page to leave out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunemesh-readme-") as empty:
        clone = Path(empty) / "tunemesh"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        page = (clone / "README.md").read_text(encoding="utf-8")
        for command in commands(page):
            if command not in options.skip:
                run(command, clone)
        (clone / "example.py").write_text(client_code(page), encoding="utf-8")
        try:
            run("make up", clone)
            said = run(".venv/light/bin/python example.py", clone)
        finally:
            run("make down", clone)
    if not said.strip():
        raise SystemExit("README's client code printed nothing")
    print("\nREADME.md holds: " + ", ".join([*commands(page), "make up", "the client code"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
