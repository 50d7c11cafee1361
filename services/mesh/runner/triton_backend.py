"""Lays out what tritonserver needs beside its binary, as the wheel nvidia-pytriton brings it: the Python backend and a shared libpython.

Imports the standard library only, as `embedded` does, which makes the server's command of it.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

from services.common.platform.errors import ConfigurationError
from services.mesh.runner.environments import installed


def assemble_backend(packages: Path, workspace: Path) -> Path:
    """Lay the Python backend and the stub for Python 3.11 side by side, as the server wants them; the wheel keeps them apart.

    Args:
        packages: site-packages of the ml environment.
        workspace: a folder of this server's own.
    Returns: the folder for the option --backend-directory.
    Raises:
        ConfigurationError: the wheel is not installed.
    """
    source = packages / "pytriton" / "tritonserver"
    target = workspace / "backends" / "python"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((source / "backends" / "python").iterdir()):
        link = target / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    stub = installed(source / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", "nvidia-pytriton")
    # A copy, not a link: the wheel may be installed without the executable bit. Renamed into place: another server may be executing it.
    fresh = target / f"stub.{uuid.uuid4().hex}"
    shutil.copy(stub, fresh)
    fresh.chmod(0o755)
    fresh.replace(target / "triton_python_backend_stub")
    return target.parent


def libpython_folder(base: Path, packages: Path) -> Path:
    """Return the folder of the shared libpython3.11 that the stub loads: the base interpreter's, else the system's.

    Raises:
        ConfigurationError: neither has one.
    """
    if (base / "lib" / "libpython3.11.so.1.0").exists():
        return base / "lib"
    stub = packages / "pytriton" / "tritonserver" / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    linked = subprocess.run(["ldd", str(stub)], capture_output=True, text=True, check=False, timeout=30).stdout
    for line in linked.splitlines():
        if "libpython3.11" in line and "=> /" in line:
            return Path(line.split("=>")[1].split()[0]).parent
    raise ConfigurationError(
        f"Triton needs a shared libpython3.11.so.1.0 and neither {base}/lib nor the system has one: "
        "install it (Debian: apt-get install libpython3.11) or make the environments from a Python built with --enable-shared"
    )
