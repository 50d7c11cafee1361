"""The shared libraries that installed packages need: read from their ELF headers, and looked for where the loader looks.

Source: System V ABI, "Dynamic Section" (tags DT_NEEDED 1, DT_STRTAB 5, DT_SONAME 14); 64-bit little-endian files alone, as x86-64 and
arm64 have them. Knows nothing about Python beyond where its packages lie.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME = 0, 1, 5, 14
_MOST_HEADERS, _MOST_ENTRIES = 256, 4096

# What python:3.11-slim-bookworm has for packages: Debian's libc6, libgcc-s1, libstdc++6 and zlib1g.
SLIM_BASE = frozenset(
    {
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libdl.so.2",
        "libgcc_s.so.1",
        "libm.so.6",
        "libpthread.so.0",
        "libresolv.so.2",
        "librt.so.1",
        "libstdc++.so.6",
        "libutil.so.1",
        "libz.so.1",
    }
)
# The library of each Debian package that the Dockerfile adds.
OF_DEBIAN: Mapping[str, str] = {"libnuma1": "libnuma.so.1"}
# Files that are loaded on request only, and that nothing here requests, by the beginning of their names.
OPTIONAL: Mapping[str, str] = {
    "tbbpool": "numba's threads by TBB; ours are the workqueue's",
    "omppool": "numba's threads by OpenMP; ours are the workqueue's",
    "perf_": "programs of tritonclient that nobody starts",
    "libur_": "intel-openmp's way to Intel's GPUs; vLLM takes libiomp5 alone",
    "libpi_": "as libur_",
    "libsycl": "as libur_",
    "libomptarget": "as libur_",
    "libarcher": "intel-openmp's race detector",
}


class NotElf(ValueError):
    """The bytes are no ELF file that this reads, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What a file says about itself to the loader: its own name (empty: none) and the names that it needs."""

    soname: str
    needed: tuple[str, ...]


def read_dynamic(data: bytes | mmap.mmap) -> Dynamic:
    """Return the dynamic section of an ELF file; one without any (a static program, an object file) needs nothing.

    Raises:
        NotElf: see there.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise NotElf("no 64-bit little-endian ELF file")
    try:
        return _dynamic(data)
    except (struct.error, OverflowError, UnicodeDecodeError) as error:
        raise NotElf(f"damaged: {error}") from error


def _dynamic(data: bytes | mmap.mmap) -> Dynamic:
    (headers_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if count > _MOST_HEADERS:
        raise NotElf(f"damaged: {count} program headers")
    loads, dynamic = [], None
    for index in range(count):
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, headers_at + index * size)
        if kind == _PT_LOAD:
            loads.append((address, in_file, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = offset, in_file
    if dynamic is None:
        return Dynamic("", ())
    entries = []
    for at in range(dynamic[0], dynamic[0] + 16 * min(dynamic[1] // 16, _MOST_ENTRIES), 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    tables = [value for tag, value in entries if tag == _DT_STRTAB]
    place = next(
        (table - address + offset for table in tables for address, in_file, offset in loads if 0 <= table - address < in_file), None
    )
    if place is None:
        raise NotElf("damaged: its dynamic section has no table of names")
    named = [(tag, _text(data, place + value)) for tag, value in entries if tag in (_DT_NEEDED, _DT_SONAME)]
    return Dynamic(
        soname=next((text for tag, text in named if tag == _DT_SONAME), ""),
        needed=tuple(text for tag, text in named if tag == _DT_NEEDED),
    )


def _text(data: bytes | mmap.mmap, at: int) -> str:
    end = data.find(b"\0", at, at + 4096) if 0 <= at < len(data) else -1
    if end < 0:
        raise NotElf("damaged: a name lies outside the file")
    return data[at:end].decode()


def of_distributions(names: Iterable[str]) -> dict[str, Path]:
    """Return the shared libraries and programs of installed distributions, by their path inside site-packages or bin.

    One that is not installed is passed over: an image may have brought it, or left it out, itself.
    """
    found: dict[str, Path] = {}
    for name in names:
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if (".so" in file.name or file.parent.name == "bin" or not file.suffix) and path.is_file() and _is_elf(path):
                found[str(file)] = path
    return found


def unresolved(files: Mapping[str, Path], available: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Return (file, name) for each library that a file needs and nobody has.

    Args:
        files: by the name that is reported; each also provides its own file name and soname to the others.
        available: names outside of them; None: what this system's loader knows.
    """
    read = {name: _read(path) for name, path in files.items()}
    inside = {path.name for path in files.values()} | {one.soname for one in read.values()}
    known = inside | set(system_libraries() if available is None else available)
    return [
        (name, library)
        for name, one in read.items()
        for library in one.needed
        if library not in known and not files[name].name.startswith(tuple(OPTIONAL))
    ]


def system_libraries() -> set[str]:
    """Return the names that the loader's cache has; the loader itself and its C library come with it."""
    ldconfig = next((path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if Path(path).exists()), "ldconfig")
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines()[1:] if line.startswith("\t")}


def _read(path: Path) -> Dynamic:
    # Mapped, since some have hundreds of megabytes and the headers lie in a few pages of them.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_dynamic(data)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
