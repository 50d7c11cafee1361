"""Writes the features of users and items over time for Feast: `make export-features DATA=…`, or
`python -m services.trainer.feature_export.main --data … --spec … --out FOLDER`.

Replays the files of events as `make train` reads them and learns nothing. The folder is a feature repository: Parquet with event
timestamps, feature_store.yaml, and features.py with the definitions.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.common.platform.errors import ConfigurationError, Conflict, ServiceError
from services.common.platform.secrets import guard_output, without_credentials
from services.common.platform.stores import is_there, opened_store
from services.common.ranker.declared.inputs import WrongValue
from services.common.ranker.feature_spec import FeatureSpec
from services.trainer.event_files.history import History, read_history, remarks
from services.trainer.event_files.options import add_file_options, read_options
from services.trainer.event_files.ordered import WorkFolder
from services.trainer.feature_export.feast_repo import DATA, DEFINITIONS_NAME, STORE_NAME, definitions, store
from services.trainer.feature_export.rows import Row, attribute_rows, columns_of, counter_rows, without_features
from services.trainer.feature_export.views import View, views_of

_EXIT_BAD_CONFIGURATION = 2
_ROWS_AT_ONCE = 20_000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.feature_export.main", description="Write the features of users and items over time for Feast."
    )
    add_file_options(parser)
    parser.add_argument("--out", required=True, help="path or fsspec URL of a folder that is not there yet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    guard_output(os.environ)
    options = _parser().parse_args(argv)
    work = WorkFolder()
    try:
        spec = FeatureSpec.load(options.spec)
        with opened_store(options.out, "written") as (filesystem, path):
            if is_there(filesystem, posixpath.join(path, STORE_NAME)):
                raise Conflict(f"{options.out} holds an export already; choose another folder, or delete it")
            history = read_history(options.data, spec, read_options(options), work=work, say=lambda line: print(line, flush=True))
            print("\n".join(remarks(history)), flush=True)
            counts = _write(spec, history, filesystem, path, source=without_credentials(f"{options.data}"))
    except (ConfigurationError, ServiceError) as error:
        print(f"configuration error: {without_credentials(str(error))}", file=sys.stderr)
        return _EXIT_BAD_CONFIGURATION
    finally:
        work.close()
    for name, count in counts.items():
        print(f"{name}: {count:,} rows")
    print(f"written to {without_credentials(options.out)}: run `feast apply` there", flush=True)
    return 0


def _write(spec: FeatureSpec, history: History, filesystem: Any, path: str, *, source: str) -> dict[str, int]:
    """Write all files, feature_store.yaml last: where it stands, the export is whole. Return the rows of each view."""
    views = views_of(spec)
    filesystem.makedirs(posixpath.join(path, DATA), exist_ok=True)
    with ExitStack() as open_files:
        files = {view.name: _ViewFile(view, filesystem, posixpath.join(path, DATA, f"{view.name}.parquet"), open_files) for view in views}
        counters = [view for view in views if view.name.endswith("_counters")]
        for view, row in counter_rows(without_features(spec), history.interactions, history.categories, counters):
            files[view.name].add([row])
        for view in views:
            if view not in counters:
                versions = history.user_attributes if view.side == "user" else history.item_attributes
                try:
                    files[view.name].add(attribute_rows(view, versions))
                except WrongValue as error:
                    raise ConfigurationError(str(error)) from error
        counts = {name: file.flush() for name, file in files.items()}
    for name, text in ((DEFINITIONS_NAME, definitions(views, source)), (STORE_NAME, store(spec.model))):
        with filesystem.open(posixpath.join(path, name), "wb") as file:
            file.write(text.encode())
    return counts


class _ViewFile:
    """The Parquet file of a view; so many rows at once are in memory."""

    def __init__(self, view: View, filesystem: Any, path: str, open_files: ExitStack) -> None:
        self._view, self._waiting, self._count = view, list[Row](), 0
        self._writer = open_files.enter_context(pq.ParquetWriter(open_files.enter_context(filesystem.open(path, "wb")), view.schema))

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._waiting.append(row)
            if len(self._waiting) == _ROWS_AT_ONCE:
                self.flush()

    def flush(self) -> int:
        """Write what waits; return how many rows there are."""
        if self._waiting:
            self._writer.write_table(pa.table(columns_of(self._view, self._waiting), schema=self._view.schema))
            self._count += len(self._waiting)
            self._waiting.clear()
        return self._count


if __name__ == "__main__":
    sys.exit(main())
