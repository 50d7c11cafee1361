"""Ports of embedded servers."""

import socket
import subprocess
import sys
from pathlib import Path

from services.mesh.runner import embedded
from services.mesh.runner.embedded import LOOPBACK, free_ports
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.mesh import Mesh


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(200)
    assert len(set(ports)) == len(ports)
    with socket.create_server((LOOPBACK, ports[0])):
        pass


def test_outgoing_connections_do_not_take_free_ports() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:  # the kernel draws port 0 as it draws that of an outgoing connection
        drawn = server.getsockname()[1]
    assert max(free_ports(50)) < min(drawn, embedded._first_outgoing_port())


def test_two_processes_that_ask_at_the_same_time_get_different_ports() -> None:
    program = "from services.mesh.runner.embedded import free_ports; print(*free_ports(300), flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = set(map(int, other.stdout.readline().split()))
        ours = set(free_ports(300))  # of 10,000: without the lease nine would be the same, on average
        other.communicate("\n")
    assert (len(theirs), len(ours)) == (300, 300)
    assert not theirs & ours


def test_no_two_services_of_a_mesh_on_free_ports_share_one(tmp_path: Path) -> None:
    mesh = Mesh(run_dir=tmp_path, free_ports=True)
    ports = [port for process in mesh._planner.processes() for port in process.ports.values()]
    assert len(ports) > 10
    assert len(set(ports)) == len(ports)
