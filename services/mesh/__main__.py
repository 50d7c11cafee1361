"""The `tunemesh` command: up, down, status, logs, settings, topics, and the operator's (`python -m services.mesh --help`).

Knows the command line and the terminal; `services.mesh.runner.mesh` does the work.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from services.common.platform.errors import ConfigurationError, Unavailable
from services.common.platform.secrets import guard_output
from services.common.platform.settings import exit_with_configuration_error, load_settings
from services.mesh.mig import command_line as mig
from services.mesh.operate.command_line import add_commands
from services.mesh.runner import supervisor
from services.mesh.runner.compose import start_order
from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.mesh import Mesh, planner_for
from services.mesh.runner.plan import Process
from services.mesh.runner.run_folder import RunFolder, prepare_folder
from services.mesh.runner.settings import MeshSettings, TopicsSettings
from services.mesh.runner.settings_list import settings_of
from services.mesh.runner.state import MeshState, ServiceState
from services.mesh.runner.topics import create_topics, mesh_topic_configs, mesh_topic_partitions

_FOLLOW_POLL_S = 0.2
_RETRIEVER_PORT = "TUNEMESH_RETRIEVER_PORT"


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; bad configuration is one line and exit code 2."""
    guard_output(os.environ)
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigurationError as error:
        exit_with_configuration_error(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _up(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    mesh = Mesh(
        settings.compose_file,
        run_dir=settings.run_dir,
        services=tuple(arguments.services),
        keep=not arguments.foreground,
        settings=settings,
    )
    shown: dict[str, str] = {}

    def progress(state: MeshState) -> None:
        for name, one in state.services.items():
            if one.state != shown.get(name) and one.state != "waiting":
                shown[name] = one.state
                print(f"  {name:<20} {one.state}{': ' + one.message if one.message else ''}", flush=True)

    if arguments.services and mesh.folder.is_up():
        mesh.start(*arguments.services, progress=progress)
        print(f"started beside what runs; logs: {mesh.folder.logs}", flush=True)
        return 0
    with mesh:
        mesh.up(progress)
        for name in mesh.external():
            print(f"  {name:<20} external")
        print(f"the mesh is up; logs: {mesh.folder.logs}; `make status`, `make logs s=NAME`, `make down`", flush=True)
        while arguments.foreground and mesh.state().phase == "up":
            time.sleep(_FOLLOW_POLL_S)
        why = mesh.state().message if arguments.foreground else ""  # a mesh that was stopped has none
    if why:
        print(f"error: the mesh has ended: {why}", file=sys.stderr)
    return 1 if why else 0


def _down(arguments: argparse.Namespace) -> int:
    mesh = _existing(arguments)
    was_up = mesh.folder.is_up()
    mesh.down()
    print("stopped" if was_up else "the mesh is not up")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    state = _existing(arguments).state()
    print(f"mesh: {state.phase}{' - ' + state.message if state.message else ''}")
    if state.services:
        print(f"  {'service':<20} {'state':<12} {'pid':>8} {'restarts':>8} {'memory':>9}  ports")
    for name, one in state.services.items():
        is_running = one.pid and psutil.pid_exists(one.pid)
        memory = f"{psutil.Process(one.pid).memory_info().rss / 2**20:.0f} MiB" if is_running else "-"
        ports = " ".join(str(port) for port in one.ports.values())
        message = f"  {one.message}" if one.message else ""
        print(f"  {name:<20} {one.state:<12} {one.pid if is_running else '-':>8} {one.restarts:>8} {memory:>9}  {ports}{message}")
    retriever = state.services.get("retriever")
    if retriever is not None and retriever.state == "healthy" and _RETRIEVER_PORT in retriever.ports:
        # Imported on use: without a retriever no gRPC stubs are needed.
        from services.mesh.operate.documents import status_lines

        for line in status_lines(f"127.0.0.1:{retriever.ports[_RETRIEVER_PORT]}"):
            print(line)
    return 0 if state.phase == "up" and all(_is_well(one) for one in state.services.values()) else 1


def _is_well(one: ServiceState) -> bool:
    return one.state in ("healthy", "not_serving", "done")


def _logs(arguments: argparse.Namespace) -> int:
    folder = RunFolder(_settings(arguments).run_dir)
    known = sorted(path.stem for path in folder.logs.glob("*.log"))
    path = folder.log(arguments.service or "supervisor")
    if not path.exists():
        raise ConfigurationError(f"there is no log of {arguments.service!r}; there are: {', '.join(known) or 'none, the mesh has not run'}")
    with path.open(encoding="utf-8", errors="replace") as log:
        lines = log.readlines()[-arguments.tail :]
        print("".join(lines), end="", flush=True)
        while arguments.follow:
            more = log.read()
            if more:
                print(more, end="", flush=True)
            else:
                time.sleep(_FOLLOW_POLL_S)
    return 0


def _topics(arguments: argparse.Namespace) -> int:
    del arguments
    settings = load_settings(TopicsSettings)
    partitions = mesh_topic_partitions(user_partitions=settings.user_partitions, shards=settings.shards)
    deadline = time.monotonic() + settings.wait_ms / 1000
    while True:
        try:
            created = create_topics(
                settings.kafka_bootstrap_servers, partitions, mesh_topic_configs(), replication_factor=settings.replication_factor
            )
        except Unavailable as error:
            if time.monotonic() > deadline:
                print(f"error: {error}", file=sys.stderr)
                return 1
            time.sleep(1.0)
        else:
            print(f"{len(created)} topics created, {len(partitions) - len(created)} were there already")
            return 0


def _list_settings(arguments: argparse.Namespace) -> int:
    compose = load_compose(_settings(arguments).compose_file, os.environ)
    for module, settings in settings_of(compose.services.values()):
        print(f"\n{module}")
        for setting in settings:
            print(f"  {setting.variable}={setting.default}\n      {setting.meaning}")
    return 0


def _supervise(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = _settings(arguments)
    folder = RunFolder(settings.run_dir)
    planner = planner_for(settings, os.environ, tuple(arguments.services))
    with folder.lock():
        prepare_folder(folder, forget_volumes=planner.is_broker_in_memory)
        plan = partial(_processes, settings)
        try:
            return asyncio.run(supervisor.supervise(plan, tuple(arguments.services), folder, settings, arguments.owner))
        except ConfigurationError as error:  # of the plan: nothing runs yet
            folder.write(MeshState(phase="failed", supervisor_pid=os.getpid(), message=str(error)))
            raise


def _processes(settings: MeshSettings, names: tuple[str, ...]) -> list[Process]:
    """Return the processes of services and of what they depend on, in start order."""
    planner = planner_for(settings, os.environ, names)
    processes = {process.name: process for process in planner.processes()}
    return [processes[name] for name in start_order(planner.services)]


def _existing(arguments: argparse.Namespace) -> Mesh:
    settings = _settings(arguments)
    return Mesh(settings.compose_file, run_dir=settings.run_dir, keep=True, settings=settings)


def _settings(arguments: argparse.Namespace) -> MeshSettings:
    settings = load_settings(MeshSettings)
    changes = {"compose_file": arguments.file, "run_dir": arguments.run_dir}
    return settings.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunemesh", description="Runs the mesh of docker-compose.yml as local processes, without Docker.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--file", type=Path, help="compose file (TUNEMESH_MESH_COMPOSE_FILE)")
    common.add_argument("--run-dir", type=Path, help="folder of state, logs and volumes (TUNEMESH_MESH_RUN_DIR)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", parents=[common], help="start the mesh and leave it running")
    up.add_argument("--foreground", action="store_true", help="stay, and stop the mesh on Ctrl-C")
    up.add_argument("services", nargs="*", help="only these and what they depend on; in a running mesh: these as well")
    up.set_defaults(run=_up)
    commands.add_parser("down", parents=[common], help="stop the mesh").set_defaults(run=_down)
    commands.add_parser("status", parents=[common], help="show each process").set_defaults(run=_status)
    logs = commands.add_parser("logs", parents=[common], help="show a service's log")
    logs.add_argument("service", nargs="?", help="name of the service; the supervisor's log without it")
    logs.add_argument("--follow", "-f", action="store_true")
    logs.add_argument("--tail", type=int, default=50, metavar="LINES")
    logs.set_defaults(run=_logs)
    topics = commands.add_parser("topics", help="create the topics (a job of compose)")
    topics.set_defaults(run=_topics)
    commands.add_parser("settings", parents=[common], help="list every setting: variable, default, meaning").set_defaults(
        run=_list_settings
    )
    supervise = commands.add_parser("supervise", parents=[common], help="run the supervisor in this process (used by up)")
    supervise.add_argument("--owner", type=int, help="stop when this pid ends")
    supervise.add_argument("services", nargs="*")
    supervise.set_defaults(run=_supervise)
    add_commands(commands, common)
    mig.add_commands(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
