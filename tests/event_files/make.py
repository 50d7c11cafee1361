"""Writes the files of this folder with the real writers: `python tests/event_files/make.py [WRITER…]`, in an environment of its own:

    python -m venv /tmp/writers
    /tmp/writers/bin/pip install polars==2.1.0 duckdb==2.0.1 pandas==3.1.1 pyarrow==26.0.1 fastparquet==2026.9.0 zstandard pyspark==4.3.0
    /tmp/writers/bin/python tests/event_files/make.py       # Spark wants Java 17

A name says what is inside: TIME-ID-CATEGORIES.FORMAT. Run it again when a writer changes its mind about how it writes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import events  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
UNITS = ("s", "ms", "us", "ns", "yyyymmdd", "yyyymmddhhmmss", "float_s")
LISTS = [events.CATEGORIES[item] for item in events.ITEMS]
AS_TEXT: dict[str, Callable[[list[str]], str]] = {"json": json.dumps, "pipe": "|".join, "comma": ", ".join}


def columns(user_id: list[Any], time: list[Any], **more: list[Any]) -> dict[str, list[Any]]:
    """Return the columns of the events."""
    fixed = {"item_id": events.ITEMS, "kind": events.KINDS, "value": events.VALUES, "title": events.TITLES}
    return {"user_id": user_id, **fixed, "time": time, **more}


def make_pandas(to: Path) -> None:
    """pandas 3 with pyarrow: each unit of timestamps and numbers, nullable and float ids, CSV in its compressions."""
    import pandas as pd

    frame = pd.DataFrame(columns(events.USERS, events.TIMES, categories=LISTS))
    for unit in ("s", "ms", "us", "ns"):
        frame.assign(time=frame["time"].dt.as_unit(unit)).to_parquet(to / f"ts_{unit}-int64-list.parquet")
        frame.assign(time=frame["time"].dt.tz_localize(None).dt.as_unit(unit)).to_parquet(to / f"naive_{unit}-int64-list.parquet")
    frame.assign(time=frame["time"].dt.tz_convert("Europe/Berlin")).to_parquet(to / "berlin-int64-list.parquet")
    frame.assign(time=frame["time"].dt.date).to_parquet(to / "date-int64-list.parquet")
    for unit in UNITS:
        frame.assign(time=events.numbers(unit)).to_parquet(to / f"{unit}-int64-list.parquet")
    for name, kind in {
        "float64": "float64",
        "nullable": "Int64",
        "text": "str",
        "category": "category",
        "int32": "int32",
        "uint64": "uint64",
    }.items():
        frame.assign(user_id=frame["user_id"].astype(kind), item_id=frame["item_id"].astype(kind)).to_parquet(
            to / f"ts_us-{name}-list.parquet"
        )
    frame.assign(user_id=frame["user_id"].astype(str) + ".0").to_parquet(to / "ts_us-float_text-list.PARQUET")
    frame.set_index("user_id").to_parquet(to / "ts_us-index-list.pq")
    frame.to_feather(to / "ts_us-int64-list.feather")
    frame.to_orc(to / "ts_ns-int64-list.orc")
    frame.to_json(to / "iso-int64-list.jsonl", orient="records", lines=True, date_format="iso")
    frame.to_json(to / "ms-int64-list.jsonl", orient="records", lines=True, date_format="epoch", date_unit="ms")
    for name, text in AS_TEXT.items():
        frame.assign(categories=[text(each) for each in LISTS]).to_csv(to / f"iso-int64-{name}.csv", index=False)
    frame.to_csv(to / "iso-int64-python.csv", index=False)
    structs = [[{"id": len(name), "name": name} for name in each] for each in LISTS]
    frame.assign(categories=structs).to_csv(to / "iso-int64-python_dicts.csv", index=False)
    frame.assign(categories=structs).to_parquet(to / "ts_us-int64-structs.parquet")
    for suffix in ("csv.gz", "csv.zst", "csv.bz2", "csv.xz"):
        frame.to_csv(to / f"iso-int64-python.{suffix}", index=False)
    frame.assign(user_id=frame["user_id"].astype("float64"), time=events.numbers("s")).to_csv(to / "s-float64-python.csv", index=False)
    frame.to_csv(to / "iso-int64-python.tsv", index=False, sep="\t")
    frame.to_csv(to / "iso-int64-python-semicolon.csv", index=False, sep=";", encoding="utf-8-sig")


def make_polars(to: Path) -> None:
    """polars: its units, Decimal, Categorical, Enum, a Hive-partitioned folder, CSV and JSON lines."""
    import polars as pl

    frame = pl.DataFrame(columns(events.USERS, events.TIMES, categories=LISTS))
    for unit in ("ms", "us", "ns"):
        frame.with_columns(pl.col("time").dt.cast_time_unit(unit)).write_parquet(to / f"ts_{unit}-int64-list.parquet")
        frame.with_columns(pl.col("time").dt.cast_time_unit(unit).dt.replace_time_zone(None)).write_parquet(
            to / f"naive_{unit}-int64-list.parquet"
        )
    frame.with_columns(pl.col("time").dt.convert_time_zone("Europe/Berlin")).write_parquet(to / "berlin-int64-list.parquet")
    frame.with_columns(pl.col("time").dt.date()).write_parquet(to / "date-int64-list.parquet")
    for unit in UNITS:
        frame.with_columns(pl.Series("time", events.numbers(unit))).write_parquet(to / f"{unit}-int64-list.parquet")
    for name, kind in {"float64": pl.Float64, "text": pl.String, "uint32": pl.UInt32, "decimal": pl.Decimal(20, 2)}.items():
        frame.with_columns(pl.col("user_id", "item_id").cast(kind)).write_parquet(to / f"ts_us-{name}-list.parquet")
    frame.with_columns(pl.col("user_id").cast(pl.Int128)).write_parquet(to / "refused-int128.parquet")
    texts = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    texts.with_columns(pl.col("user_id", "kind").cast(pl.Categorical)).write_parquet(to / "ts_us-category-list.parquet")
    texts.with_columns(pl.col("user_id").cast(pl.Enum(["1", "2", "3"]))).write_parquet(to / "ts_us-enum-list.parquet")
    structs = [[{"id": len(name), "name": name} for name in each] for each in LISTS]
    frame.with_columns(pl.Series("categories", structs)).write_parquet(to / "ts_us-int64-structs.parquet")
    for codec in ("zstd", "lz4", "gzip", "brotli", "snappy", "uncompressed"):
        frame.write_parquet(to / f"ts_us-int64-list-{codec}.parquet", compression=codec)
    frame.write_ipc(to / "ts_us-int64-list.arrow")
    frame.write_ndjson(to / "iso-int64-list.ndjson")
    for name, text in AS_TEXT.items():
        frame.with_columns(pl.Series("categories", [text(each) for each in LISTS])).write_csv(to / f"iso-int64-{name}.csv")
    frame.with_columns(pl.col("time").dt.replace_time_zone(None), pl.Series("categories", ["|".join(each) for each in LISTS])).write_csv(
        to / "iso_naive-int64-pipe.csv"
    )
    padded = frame.with_columns(pl.format("00{}", pl.col("user_id")).alias("user_id"))
    padded.write_parquet(pl.PartitionBy(to / "ts_us-padded-list", key=["user_id"], include_key=False), mkdir=True)


def make_duckdb(to: Path) -> None:
    """DuckDB: COPY of its types, with HUGEINT, UUID, ENUM and DECIMAL ids, partitioned, to Parquet, CSV and JSON."""
    import duckdb

    base = duckdb.connect()
    base.execute("SET TimeZone = 'Asia/Kolkata'")
    base.execute(
        "CREATE TABLE events (user_id BIGINT, item_id BIGINT, kind VARCHAR, value DOUBLE, title VARCHAR, time TIMESTAMPTZ, "
        "categories VARCHAR[])"
    )
    rows = list(zip(*columns(events.USERS, events.TIMES, categories=LISTS).values(), strict=True))
    base.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def copy(name: str, replaced: str = "", options: str = "") -> None:
        selected = f"SELECT * REPLACE ({replaced}) FROM events" if replaced else "SELECT * FROM events"
        base.execute(f"COPY ({selected}) TO '{to / name}' {options and f'({options})'}")

    utc = "time AT TIME ZONE 'UTC'"
    copy("ts_us-int64-list.parquet")
    for name, kind in {"s": "TIMESTAMP_S", "ms": "TIMESTAMP_MS", "us": "TIMESTAMP", "ns": "TIMESTAMP_NS"}.items():
        copy(f"naive_{name}-int64-list.parquet", f"({utc})::{kind} AS time")
    copy("date-int64-list.parquet", f"({utc})::DATE AS time")
    for name, made in {
        "s": "floor(epoch(time))::BIGINT", "float_s": "epoch(time)", "ms": "epoch_ms(time)", "us": "epoch_us(time)", "ns": "epoch_ns(time)",
        "yyyymmdd": f"strftime({utc}, '%Y%m%d')::INTEGER",
    }.items():  # fmt: skip
        copy(
            f"{name}-int64-list.parquet",
            f"{made} AS time",
        )
    for name, kind in {
        "hugeint": "HUGEINT",
        "decimal": "DECIMAL(18, 3)",
        "text": "VARCHAR",
        "uint64": "UBIGINT",
        "float64": "DOUBLE",
    }.items():
        copy(f"ts_us-{name}-list.parquet", f"user_id::{kind} AS user_id, item_id::{kind} AS item_id")
    base.execute("CREATE TYPE people AS ENUM ('1', '2', '3')")
    copy("ts_us-enum-list.parquet", "user_id::VARCHAR::people AS user_id")
    copy("ts_us-uuid-list.parquet", "format('00000000-0000-4000-8000-{:012d}', user_id)::UUID AS user_id")
    copy("ts_us-int64-structs.parquet", "[{'id': length(c), 'name': c} for c in categories] AS categories")
    copy("iso-int64-native.csv")
    copy("iso_naive-int64-native.csv", f"{utc} AS time")
    copy("iso-int64-native.csv.gz")
    copy("iso-int64-native.csv.zst")
    copy("iso-int64-list.json")
    copy("iso-int64-pipe.csv", "array_to_string(categories, '|') AS categories")
    copy("ts_us-padded-list", "format('{:03d}', user_id) AS user_id", "FORMAT parquet, PARTITION_BY (user_id)")


def make_fastparquet(to: Path) -> None:
    """fastparquet: INT96 and its own encodings; lists as JSON."""
    import pandas as pd
    from fastparquet import write

    frame = pd.DataFrame(columns(events.USERS, events.TIMES, categories=[json.dumps(each) for each in LISTS]))
    frame = frame.assign(time=frame["time"].dt.as_unit("ns"), kind=frame["kind"].astype(object), title=frame["title"].astype(object))
    frame = frame.assign(categories=frame["categories"].astype(object))
    write(str(to / "ts_us-int64-json.parquet"), frame)
    write(str(to / "int96-int64-json.parquet"), frame.assign(time=frame["time"].dt.tz_localize(None)), times="int96")
    write(str(to / "ms-float64-json.parquet"), frame.assign(time=events.numbers("ms"), user_id=frame["user_id"].astype("float64")))


def make_spark(to: Path) -> None:
    """Spark: folders with _SUCCESS and checksums, INT96 and micros, Parquet, ORC, CSV, JSON; and tables written by Hive's own serdes."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    warehouse = to / "warehouse"
    spark = (
        SparkSession.builder.master("local[1]").appName("make").enableHiveSupport()
        .config("spark.sql.warehouse.dir", str(warehouse)).config("spark.ui.enabled", "false")
        .config("spark.hadoop.javax.jdo.option.ConnectionURL", f"jdbc:derby:;databaseName={to / 'metastore'};create=true")
        .config("spark.sql.session.timeZone", "America/New_York").config("spark.sql.hive.convertMetastoreParquet", "false")
        .config("spark.sql.hive.convertMetastoreOrc", "false").config("hive.exec.dynamic.partition.mode", "nonstrict")
        .getOrCreate()
    )  # fmt: skip
    rows = list(zip(*columns(events.USERS, events.TIMES, categories=LISTS).values(), strict=True))
    schema = "user_id long, item_id long, kind string, value double, title string, time timestamp, categories array<string>"
    frame = spark.createDataFrame(rows, schema).coalesce(1)
    for name, kind in {"ts_us": "TIMESTAMP_MICROS", "ts_ms": "TIMESTAMP_MILLIS", "int96": "INT96"}.items():
        spark.conf.set("spark.sql.parquet.outputTimestampType", kind)
        frame.write.parquet(str(to / f"{name}-int64-list"))
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    frame.withColumn("time", f.col("time").cast("timestamp_ntz")).write.parquet(str(to / "naive_us-int64-list"))
    frame.withColumn("time", f.to_date("time")).write.parquet(str(to / "date-int64-list"))
    for name, made in {
        "s": "unix_seconds(time)", "ms": "unix_millis(time)", "us": "unix_micros(time)", "float_s": "cast(time as double)",
        "decimal_s": "cast(unix_micros(time) / 1000000 as decimal(20, 3))", "yyyymmdd": "cast(date_format(time, 'yyyyMMdd') as int)",
    }.items():  # fmt: skip
        frame.withColumn("time", f.expr(made)).write.parquet(str(to / f"{name}-int64-list"))
    for name, kind in {"text": "string", "decimal": "decimal(38,0)", "float64": "double", "int32": "int"}.items():
        frame.withColumn("user_id", f.col("user_id").cast(kind)).write.option("compression", "zstd").parquet(str(to / f"ts_us-{name}-list"))
    frame.withColumn("categories", f.expr("transform(categories, c -> named_struct('id', length(c), 'name', c))")).write.parquet(
        str(to / "ts_us-int64-structs")
    )
    spark.conf.set("spark.sql.session.timeZone", "America/New_York")
    padded = frame.withColumn("user_id", f.format_string("%03d", "user_id"))
    padded.repartition(2).write.partitionBy("user_id").parquet(str(to / "ts_us-padded-list"))
    frame.write.orc(str(to / "ts_us-int64-list-orc"))
    frame.write.json(str(to / "iso-int64-list-json"))
    texts = frame.withColumn("categories", f.to_json("categories"))
    texts.write.option("header", True).csv(str(to / "iso-int64-json-csv"))
    texts.write.option("header", True).option("compression", "gzip").csv(str(to / "iso-int64-json-csv-gzip"))
    texts.write.csv(str(to / "refused-no-header-csv"))
    texts.write.option("header", True).option("compression", "snappy").csv(str(to / "refused-snappy-csv"))
    frame.withColumn("categories", f.expr("map('Drama', 1)")).write.parquet(str(to / "refused-map"))
    for name, stored in {"hive-parquet": "PARQUET", "hive-orc": "ORC", "hive-text": "TEXTFILE"}.items():
        table = name.replace("-", "_")
        spark.sql(
            f"CREATE TABLE {table} (item_id bigint, kind string, value double, title string, time timestamp, categories array<string>) "
            f"PARTITIONED BY (user_id string) STORED AS {stored}"
        )
        padded.createOrReplaceTempView("padded")
        spark.sql(f"INSERT INTO {table} PARTITION (user_id) SELECT item_id, kind, value, title, time, categories, user_id FROM padded")
        shutil.move(warehouse / table, to / ("refused-hive-text" if stored == "TEXTFILE" else f"ts_ns-padded-list-{name}"))
    spark.stop()
    for left in (warehouse, to / "metastore"):
        shutil.rmtree(left, ignore_errors=True)


MAKERS: dict[str, Callable[[Path], None]] = {
    "pandas": make_pandas, "polars": make_polars, "duckdb": make_duckdb, "fastparquet": make_fastparquet, "spark": make_spark,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Write the folders of the named writers, or of all, anew."""
    for name in names or list(MAKERS):
        to = HERE / name
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        MAKERS[name](to)
        sizes = [each.stat().st_size for each in to.rglob("*") if each.is_file()]
        print(f"{name}: {len(sizes)} files, {sum(sizes)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
