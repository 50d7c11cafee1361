"""The peers: what is installed, on top of the environment of the model, and how each is started."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.bench.row import NotHere
from services.common.platform.errors import ConfigurationError
from services.mesh.runner import embedded
from services.mesh.runner.environments import REPOSITORY_ROOT, Environments

FOLDER = Path("build/peers")
# As the light environment has them: the job reads states as the recommender does.
_OF_THE_LIGHT_ENVIRONMENT = ("redis", "hiredis")
_INSTALL_S, _START_S, _STOP_S = 900.0, 300.0, 20.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of the job.

    Attributes:
        name: of the row.
        package: pinned.
        path: of the HTTP endpoint.
        words: makes the command line behind the Python of its environment, from a port.
    """

    name: str
    package: str
    path: str
    words: Callable[[int], Sequence[str]]


def _script(name: str) -> Callable[[int], Sequence[str]]:
    return lambda port: (f"loadtests/bench_peers/{name}_app.py", str(port))


def _bentoml(port: int) -> Sequence[str]:
    return ("-m", "bentoml", "serve", "loadtests.bench_peers.bentoml_app:Recommend", "--host", "127.0.0.1", "--port", str(port))


LITSERVE = Peer("litserve", "litserve==0.2.19", "/predict", _script("litserve"))
BENTOML = Peer("bentoml", "bentoml==1.4.40", "/recommend", _bentoml)
RAY = Peer("ray", "ray[serve]==2.60.0", "/", _script("ray"))


def python_of(peer: Peer, environments: Environments) -> Path:
    """Return the Python of a peer's environment; it is made once, on top of the ml environment.

    Raises:
        ConfigurationError: there is no ml environment.
        NotHere: the peer cannot be installed; says why.
    """
    folder = (REPOSITORY_ROOT / FOLDER / re.sub(r"[^a-z0-9.]+", "-", peer.package)).resolve()
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.is_file():
        return python
    ml = environments.python("ml")
    redis = [f"{name}=={_version(name, environments)}" for name in _OF_THE_LIGHT_ENVIRONMENT]
    _said([str(ml), "-m", "venv", "--clear", "--without-pip", str(folder)])
    purelib = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # Behind its own packages: what the peer wants in another version it brings itself.
    (purelib / "model.pth").write_text(f"{environments.site_packages('ml')}\n")
    _said([str(ml), "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", peer.package, *redis])
    ready.touch()
    return python


def _version(name: str, environments: Environments) -> str:
    [found] = environments.site_packages("light").glob(f"{name}-*.dist-info")
    return found.name.removeprefix(f"{name}-").removesuffix(".dist-info")


def _said(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise NotHere(f"{' '.join(command)}: {embedded.last_line(done.stderr or done.stdout)}")


@contextmanager
def serving(peer: Peer, python: Path, redis_url: str, is_ready: Callable[[int], bool]) -> Iterator[int]:
    """Start a peer and yield its port; it ends with everything that it started.

    Raises:
        NotHere: it does not start; shows the end of what it wrote.
    """
    port = embedded.free_port()
    # Ray's sockets have short names only.
    with tempfile.TemporaryDirectory(prefix="tm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tables").mkdir()
        paths = [str(REPOSITORY_ROOT / part) for part in ("", "protos/gen", "loadtests/bench_recommend_path")]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "BENCH_REDIS_URL": redis_url,
            "BENCH_TABLES": str(folder / "tables"),
            "BENCH_RAY": str(folder / "ray"),
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Or it leaves a token that others must have from then on (findings/ray_local_cluster_locks_others_out.sh).
            "RAY_AUTH_MODE": "disabled",
            "TUNEMESH_TELEMETRY_DIR": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        command = embedded.Command(argv=(str(python), *peer.words(port)), env=env, cwd=REPOSITORY_ROOT)
        try:
            server = embedded.EmbeddedServer(command, log=folder / "log", ready=lambda: is_ready(port), timeout_s=_START_S)
        except ConfigurationError as error:
            said = (folder / "log").read_text(errors="replace")[-3_000:]
            raise NotHere(f"{peer.package} does not answer: {error}\n{said}") from error
        # Ray's processes have groups of their own.
        family = set(psutil.Process(server.pid).children(recursive=True))
        try:
            yield port
        finally:
            if psutil.pid_exists(server.pid):
                family |= set(psutil.Process(server.pid).children(recursive=True))
            server.stop(_STOP_S)
            for one in psutil.wait_procs(family, _STOP_S)[1]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
