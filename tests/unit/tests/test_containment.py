import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.limits import seconds
from tests.run.plan import ROOT

# A server in a session of its own, whose test dies without stopping it, once it is up: before it has its command line for a moment not.
TEST = """
import subprocess, sys
up = "import sys, time; sys.stderr.write('up'); sys.stderr.close(); time.sleep(600)"
server = subprocess.Popen([sys.executable, "-c", up], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
server.stderr.read(2)
print(server.pid, flush=True)
"""
INNER = """
import os, subprocess, sys, time
from tests.run.containment import end_orphans
subprocess.run([sys.executable, "-c", {test!r}], check=True)
{last}
"""
OUTER = """
import sys
from tests.run.containment import run_contained
raise SystemExit(run_contained([sys.executable, "-u", "-c", sys.argv[1]]))
"""
TIDY = """
try:
    print("running", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("tidied up")
    sys.exit(130)
"""


def start(last: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OUTER, INNER.format(test=TEST, last=last)]
    # A shell has background jobs ignore Ctrl-C, and their children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def is_running(pid: str) -> bool:
    """A killed process may be a zombie for as long as its new parent takes."""
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("last", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("pass", 0)])
def test_what_a_dead_test_left_running_ends_with_the_run_whatever_its_exit_code(last: str, code: int) -> None:
    with start(last) as run:
        (pid,) = run.communicate(timeout=seconds(60))[0].splitlines()
    assert run.returncode == code
    assert not is_running(pid)


def test_orphans_are_told_before_the_verdict() -> None:
    with start("end_orphans(); print('PASSED')") as run:
        pid, left, verdict = run.communicate(timeout=seconds(60))[0].splitlines()
    assert left.startswith("left running by a test, killed now: ") and "time.sleep(600)" in left
    assert verdict == "PASSED" and not is_running(pid)


def test_a_run_that_is_asked_to_end_may_tidy_up_and_leaves_nothing_behind() -> None:
    with start(TIDY) as run:
        assert run.stdout is not None
        pid = run.stdout.readline()
        assert run.stdout.readline() == "running\n"
        os.kill(run.pid, signal.SIGTERM)
        assert run.communicate(timeout=seconds(60))[0] == "tidied up\n"
    assert run.returncode == 130 and not is_running(pid)
