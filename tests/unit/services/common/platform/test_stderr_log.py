from __future__ import annotations

import subprocess
import sys

from services.mesh.runner.environments import REPOSITORY_ROOT

# Four threads that log without a pause, as one that waits for a broker may log at any time.
TALKING = """
import logging, threading
from services.common.platform.errors import ConfigurationError
from services.common.platform.secrets import Redactor
from services.common.platform.settings import run_main
from services.common.platform.stderr_log import configure_logging

async def main():
    configure_logging("talker", Redactor())
    log = logging.getLogger("talker")
    started = threading.Barrier(5)
    def talk():
        log.warning("begins")
        started.wait()
        while True:
            log.warning("still here")
    for _ in range(4):
        threading.Thread(target=talk, daemon=True).start()
    started.wait()
    raise ConfigurationError("port 1 is taken")

run_main(main)
"""


def test_what_was_wrong_is_the_last_line_though_threads_still_log():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", TALKING], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        assert done.returncode == 2
        assert sum(line.endswith("begins") for line in lines) == 4, "what was said before is not lost"
        assert lines[-1] == "configuration error: port 1 is taken"
