"""ELF headers, against those of real packages and against readelf's own answer for one of them."""

import random
from pathlib import Path

import numpy as np
import pytest

from services.mesh.images.libraries import NotElf, of_distributions, read_dynamic, system_libraries, unresolved
from tests.fuzz.elf import fuzz_elf


@pytest.fixture(scope="module")
def numpy_files() -> dict[str, Path]:
    return of_distributions(["numpy"])


def test_a_library_says_its_name_and_what_it_needs(numpy_files: dict[str, Path]) -> None:
    [openblas] = [path for name, path in numpy_files.items() if "openblas" in name]
    found = read_dynamic(openblas.read_bytes())
    assert found.soname == openblas.name
    assert {"libm.so.6", "libc.so.6"} <= set(found.needed)
    [core] = [path for name, path in numpy_files.items() if "_multiarray_umath" in name]
    assert openblas.name in read_dynamic(core.read_bytes()).needed


def test_a_library_is_found_in_a_package_in_the_base_or_not_at_all(numpy_files: dict[str, Path]) -> None:
    base = {
        "libc.so.6",
        "libm.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "ld-linux-x86-64.so.2",
        "libgcc_s.so.1",
        "libstdc++.so.6",
        "libz.so.1",
    }
    assert unresolved(numpy_files, base) == []
    assert {library for _, library in unresolved(numpy_files, base - {"libm.so.6"})} == {"libm.so.6"}
    alone = {name: path for name, path in numpy_files.items() if "openblas" not in path.name}
    assert any("openblas" in library for _, library in unresolved(alone, base))


def test_this_system_has_what_its_own_python_runs_on() -> None:
    assert "libc.so.6" in system_libraries()


def test_a_package_that_is_not_installed_has_no_libraries() -> None:
    assert of_distributions(["no-such-package"]) == {}
    assert np.__name__ in {name.split("/")[0] for name in of_distributions(["numpy"])}


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + bytes(10)])
def test_what_is_no_elf_file_is_refused(data: bytes) -> None:
    with pytest.raises(NotElf):
        read_dynamic(data)


def test_a_few_thousand_damaged_files_are_read_or_refused() -> None:
    outcomes = fuzz_elf(3_000, random.Random(7))
    assert outcomes["read"] > 100 and outcomes["refused"] > 100, outcomes
