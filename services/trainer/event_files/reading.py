"""What the readers of all formats share: an opened file, what its errors become, and what is wrong with its columns' names."""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from services.trainer.event_files.places import EventFileError

BATCH_ROWS = 1 << 15
"""At most so many rows are columns in memory."""

Columns = dict[str, Any]
"""By name, pyarrow arrays of one length."""

Opens = Callable[[], AbstractContextManager[IO[bytes]]]
"""Gives the content of a text file from its beginning, each time it is called."""


@dataclass(frozen=True, slots=True)
class EventFile:
    """A file that was opened, and can be read more than once.

    Attributes:
        path: its text is what errors name.
        names: of the wanted columns that it has.
        batches: of the named columns, each of at most BATCH_ROWS rows, in the order of rows. Raises EventFileError.
    """

    path: object
    names: Sequence[str]
    batches: Callable[[Sequence[str]], Iterator[Columns]]


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what readers raise about a file into EventFileError."""
    try:
        yield
    except EventFileError:
        raise
    except (
        pa.ArrowException,
        csv.Error,
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zlib.error,
        lzma.LZMAError,
        OverflowError,
        RecursionError,
    ) as error:
        what = " ".join(str(error).split())[:300]
        raise EventFileError(f"{path}: cannot be read ({what}); write it again, whole and with common types") from error


def check_names(path: object, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise EventFileError for a wanted name that occurs twice, or where there is none of them."""
    twice = next((name for name in wanted if list(names).count(name) > 1), None)
    if twice is not None:
        raise EventFileError(f"{path}: has two columns {twice!r}; leave one of them out")
    if not set(names) & set(wanted):
        shown = ", ".join(repr(name[:40]) for name in list(names)[:8])
        raise EventFileError(
            f"{path}: names none of the columns {', '.join(wanted)}, but {shown or 'none at all'}; say what it calls "
            "them by --columns OURS=YOURS,…, or write the file with their names (CSV: with a header)"
        )
