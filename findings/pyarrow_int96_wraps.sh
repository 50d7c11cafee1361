#!/bin/bash
# pyarrow 26.0.1 (and so pandas.read_parquet): a timestamp that Spark wrote as INT96 outside 1677 to 2262 comes back as another date, silently.
#
# INT96 holds a Julian day and the nanoseconds of the day, so 9999-12-31, the usual "valid for ever", fits. Spark writes INT96 unless it is told
# otherwise. pyarrow reads it as int64 nanoseconds, which overflow: one expects an error, as pyarrow's own casts raise, and gets 1816-03-29. With
# coerce_int96_timestamp_unit="us" the date is right. Here pyarrow writes the file itself, in the same encoding.
#
# Versions: pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6; Python 3.11, Linux x86-64.
# Seen:     written 9999-12-31, read by default 1816-03-29, by pandas 1816-03-29, with coerce_int96_timestamp_unit="us" 9999-12-31; a cast says: Casting … would result in out of bounds timestamp
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/events.parquet" << 'PYTHON'
import sys
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
column = pa.array([datetime(9999, 12, 31)], pa.timestamp("us"))
pq.write_table(pa.table({"until": column}), path, use_deprecated_int96_timestamps=True)


def day(read: object) -> str:
    return read.column("until").cast(pa.string())[0].as_py()[:10]


by_default = day(pq.read_table(path))
by_pandas = f"{pd.read_parquet(path)['until'][0]:%Y-%m-%d}"
as_micros = day(pq.read_table(path, coerce_int96_timestamp_unit="us"))
try:
    column.cast(pa.timestamp("ns"))
    cast = "nothing"
except pa.ArrowInvalid as error:
    cast = str(error)
print(f"written 9999-12-31, read by default {by_default}, by pandas {by_pandas}, with coerce_int96_timestamp_unit=\"us\" {as_micros}; a cast says: {cast}")
sys.exit(not (by_default == by_pandas == "1816-03-29" and as_micros == "9999-12-31" and "out of bounds" in cast))
PYTHON
