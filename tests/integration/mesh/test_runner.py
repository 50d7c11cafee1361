"""The runner on small made-up meshes: real processes, real signals."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.embedded import free_port
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh
from services.mesh.runner.run_folder import RunFolder
from services.mesh.runner.settings import MeshSettings
from services.mesh.runner.state import ProcessId
from tests.limits import seconds
from tests.waiting import eventually

pytestmark = pytest.mark.integration

# Listens on its port, leaves a note of each start and end, and starts a child of its own when asked.
DUMMY = """
import os, pathlib, signal, socket, subprocess, sys, time
name, port = sys.argv[1], int(os.environ.get("DUMMY_PORT", "0"))
notes = pathlib.Path(sys.argv[2])
def note(text):
    with notes.open("a") as file:
        file.write(f"{name} {text}\\n")
note("start")
if "grandchild" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def end(*_):
        while "patient" in sys.argv and "first end" not in notes.read_text():
            time.sleep(0.05)
        note("end")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
if "misconfigured" in sys.argv:
    print("configuration error: TUNEMESH_DUMMY_X=7: must be less than 5", file=sys.stderr)
    sys.exit(2)
server = socket.create_server(("127.0.0.1", port))
while True:
    time.sleep(0.05)
"""

SERVICE = """
  {name}:
    image: dummy:1
    command: ["python", "dummy.py", "{name}", "{notes}"{words}]
    restart: {restart}
    stop_grace_period: {grace}
    environment: {{ DUMMY_PORT: "7000" }}
    depends_on: {{{depends_on}}}
    healthcheck: {{ test: ["CMD", "python", "-c", "import socket; socket.create_connection(('127.0.0.1', {port})).close()"], interval: 1s }}
    x-tunemesh: {{ env: light, ports: {{ 7000: DUMMY_PORT }} }}
"""


class Dummies:
    """Writes compose files of dummy services and makes meshes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes.txt"
        (folder / "dummy.py").write_text(DUMMY)
        self.made: list[Mesh] = []

    def mesh(self, *services: str, **settings: int) -> Mesh:
        (self.folder / "compose.yml").write_text("services:" + "".join(services))
        quick = {"backoff_initial_ms": 100, "backoff_max_ms": 400, "start_timeout_ms": round(1000 * seconds(60))} | settings
        mesh = Mesh(self.folder / "compose.yml", run_dir=self.folder / "run", settings=MeshSettings(**quick))
        self.made.append(mesh)
        return mesh

    def service(self, name: str, *words: str, port: int | None = None, after: str = "", restart: str = "always") -> str:
        """A service on a port of its own; `${NAME_PORT:-…}` is what moves it, so that the mesh knows the default."""
        port = port or free_port()
        variable = f"{name.upper()}_PORT"
        text = SERVICE.format(
            name=name,
            notes=self.notes,
            words="".join(f', "{word}"' for word in words),
            restart=restart,
            grace="2s" if "stubborn" in words else "20s",
            depends_on=f"{after}: {{condition: service_healthy}}" if after else "",
            port=port,
        )
        text = text.replace('DUMMY_PORT: "7000"', f'DUMMY_PORT: "${{{variable}:-{port}}}"').replace("7000: DUMMY_PORT", f"7000: {variable}")
        return text + f'    ports: ["127.0.0.1:${{{variable}:-{port}}}:7000"]\n'

    def lines(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def remaining(self) -> list[int]:
        return RunFolder(self.folder / "run").processes()


@pytest.fixture
def dummies(tmp_path: Path) -> Iterator[Dummies]:
    made = Dummies(tmp_path)
    yield made
    for mesh in made.made:
        mesh.down()
    eventually(lambda: made.remaining() == [])  # a killed process is gone when the system has got round to it


def test_services_start_after_what_they_depend_on_and_stop_before_it(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("second", after="first"), dummies.service("first"))
    mesh.up()
    assert {name: one.state for name, one in mesh.services().items()} == {"first": "healthy", "second": "healthy"}
    mesh.down()
    assert dummies.lines() == ["first start", "second start", "second end", "first end"]
    assert mesh.state().phase == "down"


def test_a_service_stops_as_soon_as_those_that_depend_on_it_have_and_waits_for_no_other(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("first"), dummies.service("second", after="first"), dummies.service("slow", "patient"))
    mesh.up()
    mesh.down()
    assert dummies.lines()[-3:] == ["second end", "first end", "slow end"]


def test_a_service_with_a_smaller_share_of_the_processor_yields_to_the_others(dummies: Dummies) -> None:
    modest = dummies.service("modest").replace("    image: dummy:1\n", "    image: dummy:1\n    cpu_shares: 256\n")
    mesh = dummies.mesh(modest, dummies.service("other"))
    mesh.up()
    pids = mesh.pids()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert {name: os.getpriority(os.PRIO_PROCESS, pid) for name, pid in pids.items()} == {"modest": max(own, 6), "other": own}
    group = Path(f"/proc/{pids['modest']}/autogroup")
    if group.exists():  # a kernel with scheduling groups: between sessions only the group's value counts
        assert group.read_text().strip().endswith("nice 6")


def test_more_services_of_a_running_mesh_start_later_beside_those_that_run(dummies: Dummies) -> None:
    dummies.mesh(dummies.service("first"), dummies.service("job", "misconfigured"), dummies.service("second", after="first"))
    quick = MeshSettings(backoff_initial_ms=100, start_timeout_ms=round(1000 * seconds(60)))
    mesh = Mesh(dummies.folder / "compose.yml", run_dir=dummies.folder / "run", services=("first",), settings=quick)
    with pytest.raises(ConfigurationError, match="is down, not up"):
        mesh.start("second")
    mesh.up()
    dummies.made.append(mesh)
    before = mesh.pids()
    assert list(before) == ["first"]
    mesh.start("second")
    assert mesh.pids().keys() == {"first", "second"}
    assert mesh.pids()["first"] == before["first"]
    assert dummies.lines() == ["first start", "second start"]
    with pytest.raises(ConfigurationError, match="job: configuration error: TUNEMESH_DUMMY_X=7"):
        mesh.start("job")
    with pytest.raises(ConfigurationError, match="has no service 'third'"):
        mesh.start("third")
    assert mesh.services()["second"].state == "healthy"
    assert mesh.state().phase == "up"
    (dummies.folder / "run" / "start.json").unlink()
    os.kill(mesh.state().supervisor_pid, signal.SIGHUP)
    eventually(lambda: "SIGHUP without a request" in mesh.log_path("supervisor").read_text())
    assert mesh.pids().keys() == {"first", "second"}
    mesh.down()
    assert dummies.lines()[-2:] == ["second end", "first end"]


def test_a_killed_service_is_started_again_and_counted(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"), dummies.service("two"))
    mesh.up()
    before = mesh.pids()
    os.kill(before["one"], signal.SIGKILL)
    eventually(lambda: mesh.restarts()["one"] == 1 and mesh.services()["one"].state == "healthy")
    after = mesh.pids()
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]
    assert mesh.restarts() == {"one": 1, "two": 0}
    assert mesh.failures() == {}


def test_a_service_that_dies_again_and_again_is_started_ever_more_slowly(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    mesh.up()
    started = time.monotonic()
    for restart in range(1, 4):
        os.kill(mesh.pids()["one"], signal.SIGKILL)
        eventually(lambda restart=restart: mesh.restarts()["one"] == restart and "one" in mesh.pids())
    assert time.monotonic() - started > 0.1 + 0.2 + 0.4


def blocked(path: Path) -> bool:
    """Put a folder where a file is to be written; False while the file itself is there, just now."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def words_of(process: psutil.Process) -> list[str]:
    """The command line; nothing of a process (a health check, say) that has ended meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def test_supervision_goes_on_while_neither_a_log_nor_the_state_can_be_written(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    mesh.up()
    log, state = mesh.folder.log("one"), mesh.folder.path / "state.json.new"
    log.unlink()
    log.mkdir()
    os.kill(mesh.pids()["one"], signal.SIGKILL)
    eventually(lambda: "could not be started" in mesh.services()["one"].message)
    eventually(lambda: blocked(state))
    log.rmdir()
    eventually(lambda: dummies.lines().count("one start") == 2)
    state.rmdir()
    (running,) = [child for child in psutil.Process(mesh.state().supervisor_pid).children() if "dummy.py" in words_of(child)]
    running.kill()
    eventually(lambda: mesh.restarts()["one"] == 2 and mesh.services()["one"].state == "healthy")


def test_a_run_folder_that_cannot_be_written_is_one_line(dummies: Dummies, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"run folder .* cannot be written: .*TUNEMESH_MESH_RUN_DIR"):
        dummies.mesh(dummies.service("one")).up()
    (tmp_path / "run").unlink()


def test_a_taken_port_names_the_port_the_service_its_holder_and_the_variable(dummies: Dummies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mesh = dummies.mesh(dummies.service("fine"), dummies.service("unlucky", port=port, after="fine"))
        with pytest.raises(ConfigurationError) as caught:
            mesh.up()
    message = str(caught.value)
    assert f"port {port} of unlucky is already taken (by pid {os.getpid()}" in message
    assert "set UNLUCKY_PORT to a free port" in message
    assert "\n" not in message
    eventually(lambda: dummies.remaining() == [])


def test_a_misconfigured_service_fails_the_start_with_its_own_line_and_is_not_tried_again(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("fine"), dummies.service("wrong", "misconfigured"))
    with pytest.raises(ConfigurationError, match="wrong: configuration error: TUNEMESH_DUMMY_X=7: must be less than 5"):
        mesh.up()
    assert dummies.lines().count("wrong start") == 1
    assert mesh.state().phase == "failed"


def test_a_service_that_ignores_sigterm_is_killed_with_its_children_after_its_grace(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one", "stubborn", "grandchild"))
    mesh.up()
    eventually(lambda: len(dummies.remaining()) == 2)  # the service and its child; a health check's process comes and goes
    started = time.monotonic()
    mesh.down()
    assert time.monotonic() - started > 1.5
    assert "one did not end within 2 s of SIGTERM: killed" in mesh.log_path("supervisor").read_text()
    eventually(lambda: dummies.remaining() == [])


def test_a_killed_supervisor_takes_its_services_along_and_the_next_start_clears_the_rest(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one", "grandchild"))
    mesh.up()
    service = mesh.pids()["one"]
    os.kill(mesh.state().supervisor_pid, signal.SIGKILL)
    eventually(lambda: ProcessId.of(service) is None)
    # A process dies thread by thread: its children may be gone before its lock is.
    eventually(lambda: mesh.state().phase == "down")
    eventually(lambda: len(dummies.remaining()) == 1)  # the service's own child
    orphans = dummies.remaining()
    again = dummies.mesh(dummies.service("one", port=int(mesh.address("one").rpartition(":")[2])))
    again.up()
    assert all(ProcessId.of(pid) is None for pid in orphans)
    assert again.services()["one"].state == "healthy"


def test_a_mesh_ends_with_its_owner(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    script = f"""
import time
from pathlib import Path
from services.mesh.runner.mesh import Mesh
mesh = Mesh(Path({str(dummies.folder / "compose.yml")!r}), run_dir=Path({str(dummies.folder / "run")!r}))
mesh.up()
print("up", flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "up\n"
        owner.kill()
        owner.wait()
    eventually(lambda: dummies.remaining() == [] and not mesh.folder.is_up())


@pytest.fixture
def heard_ctrl_c() -> Iterator[None]:
    """A shell has background jobs ignore SIGINT, and their children inherit that: tests that run in one would wait in vain."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_during_the_foreground_run_stops_every_process(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one", "grandchild"), dummies.service("two", after="one"))
    argv = [sys.executable, "-m", "services.mesh", "up", "--foreground", "--file", str(dummies.folder / "compose.yml")]
    command = subprocess.Popen([*argv, "--run-dir", str(dummies.folder / "run")], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    with command.stdout:
        assert any("the mesh is up" in line for line in command.stdout)
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=seconds(60)) == 130
    eventually(lambda: dummies.remaining() == [])
    assert mesh.state().phase == "down"


@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_during_the_start_stops_what_was_started(dummies: Dummies) -> None:
    never = (
        dummies.service("never")
        .replace("python dummy.py", "python dummy.py")
        .replace("create_connection(('127.0.0.1', ", "create_connection(('127.0.0.1', 1 + 0 * ")
    )
    dummies.mesh(dummies.service("one"), never)
    command = subprocess.Popen(up_argv(dummies), cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    with command.stdout:
        assert any("one" in line and "healthy" in line for line in command.stdout)
        command.send_signal(signal.SIGINT)
        assert command.wait(timeout=seconds(60)) == 130
    eventually(lambda: dummies.remaining() == [])


def test_a_second_mesh_in_the_same_folder_is_refused_and_the_first_stays(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    mesh.up()
    with pytest.raises(ConfigurationError, match="a mesh is already up in"):
        Mesh(dummies.folder / "compose.yml", run_dir=dummies.folder / "run").up()
    assert mesh.services()["one"].state == "healthy"


def up_argv(dummies: Dummies, *options: str) -> list[str]:
    place = ["--file", str(dummies.folder / "compose.yml"), "--run-dir", str(dummies.folder / "run")]
    return [sys.executable, "-m", "services.mesh", "up", *options, *place]


def test_a_second_up_from_the_command_line_is_refused_and_the_first_stays(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    mesh.up()
    second = subprocess.run(up_argv(dummies), cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(60), check=False)
    assert second.returncode == 2
    assert "a mesh is already up in" in second.stderr
    assert mesh.services()["one"].state == "healthy"
    assert dummies.lines() == ["one start"]


def test_the_foreground_run_says_that_the_mesh_has_ended_and_fails(dummies: Dummies) -> None:
    mesh = dummies.mesh(dummies.service("one"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen(up_argv(dummies, "--foreground"), cwd=REPOSITORY_ROOT, text=True, **pipes)
    assert command.stdout is not None
    assert any("the mesh is up" in line for line in command.stdout)
    os.kill(mesh.state().supervisor_pid, signal.SIGKILL)
    _, said = command.communicate(timeout=seconds(60))
    assert command.returncode == 1
    assert "error: the mesh has ended: the supervisor was killed" in said
    eventually(lambda: dummies.remaining() == [])


def test_up_status_logs_and_down_work_from_the_command_line(dummies: Dummies) -> None:
    dummies.mesh(dummies.service("one"))

    def tunemesh(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "services.mesh", words[0], *up_argv(dummies)[4:], *words[1:]]
        return subprocess.run(argv, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=seconds(60), check=False)

    up = tunemesh("up")
    assert up.returncode == 0, up.stderr
    status = tunemesh("status")
    assert status.returncode == 0
    assert "mesh: up" in status.stdout
    assert "healthy" in status.stdout
    (dummies.folder / "run" / "logs" / "one.log").write_text("said something\n")
    assert "said something" in tunemesh("logs", "one").stdout
    unknown = tunemesh("logs", "nobody")
    assert unknown.returncode == 2
    assert "there is no log of 'nobody'; there are: one, supervisor" in unknown.stderr
    assert tunemesh("down").stdout == "stopped\n"
    assert tunemesh("down").stdout == "the mesh is not up\n"
    assert tunemesh("status").returncode == 1
