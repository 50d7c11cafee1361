"""Ports of embedded servers."""

import socket
from pathlib import Path

from services.mesh.runner.embedded import LOOPBACK, free_ports
from services.mesh.runner.mesh import Mesh


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(500)  # drawn one by one, some of so many would be equal
    assert len(set(ports)) == len(ports)
    with socket.create_server((LOOPBACK, ports[0])):
        pass


def test_no_two_services_of_a_mesh_on_free_ports_share_one(tmp_path: Path) -> None:
    mesh = Mesh(run_dir=tmp_path, free_ports=True)
    ports = [port for process in mesh._planner.processes() for port in process.ports.values()]
    assert len(ports) > 10
    assert len(set(ports)) == len(ports)
