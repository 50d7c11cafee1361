"""How long OpenMP's threads spin: as libgomp itself understands the variables."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.platform.openmp import spin_shortly


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_what_the_operator_has_set_stays(own: dict[str, str]) -> None:
    environ = dict(own)
    spin_shortly(environ)
    assert environ == own


@pytest.mark.ml
@pytest.mark.parametrize(("own", "spins"), [({}, 1_000), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0), ({"GOMP_SPINCOUNT": "7"}, 7)])
def test_torchs_own_libgomp_reads_it_so(own: dict[str, str], spins: int) -> None:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | own
    spin_shortly(environ)
    load = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(Path(found.origin).parent / "lib" / "libgomp.so.1")]
    said = subprocess.run(load, env=environ | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


@pytest.mark.ml
@pytest.mark.parametrize("module", ["services.llm.engine", "services.tuner.train"])
def test_who_sets_it_does_so_before_torch_is_imported(module: str) -> None:
    look = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
