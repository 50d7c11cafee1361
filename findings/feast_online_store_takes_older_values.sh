#!/bin/bash
# Feast 0.67.0, SQLite online store: a value with an older event timestamp replaces a newer one, and a value far beyond its view's ttl is
# served as present.
#
# Each value carries the time of its event, and historical retrieval goes by it: latest before the asked time, and no older than the ttl. One
# expects the online store to do the same, so that a late or repeated record of a stream changes nothing. It keeps what was written last; a
# backfill that runs beside a stream takes users back in time. And what is read online has status PRESENT however old it is (a ttl of an hour,
# a value of years ago).
#
# Versions: feast 0.67.0, dask 2026.8.0, pandas 2.3.3, pyarrow 26.0.1; Python 3.11.
# Seen:     written 05:00 -> 30, status PRESENT
#           then written 01:00 -> 10, status PRESENT
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check feast==0.67.0 dask==2026.8.0 pandas==2.3.3 pyarrow==26.0.1
cd "$folder"
cat > feature_store.yaml << 'YAML'
project: shop
provider: local
registry: registry.db
offline_store: {type: file}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
YAML
FEAST_USAGE=False "$folder/venv/bin/python" -W ignore - << 'PYTHON'
import sys
from datetime import datetime, timedelta, timezone

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Int64


def row(clicks, hour):
    return pd.DataFrame({"user_id": ["ann"], "clicks": [clicks], "event_timestamp": [datetime(2024, 3, 1, hour, tzinfo=timezone.utc)]})


row(1, 0).to_parquet("clicks.parquet")
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
view = FeatureView(
    name="acts",
    entities=[user],
    ttl=timedelta(hours=1),
    schema=[Field(name="clicks", dtype=Int64)],
    source=FileSource(path="clicks.parquet", timestamp_field="event_timestamp"),
)
store = FeatureStore(".")
store.apply([user, view])


def served():
    answer = store.get_online_features(features=["acts:clicks"], entity_rows=[{"user_id": "ann"}])
    at = list(answer.proto.metadata.feature_names.val).index("clicks")
    return answer.to_dict()["clicks"][0], FieldStatus.Name(answer.proto.results[at].statuses[0])


seen = []
for said, clicks, hour in (("written 05:00", 30, 5), ("then written 01:00", 10, 1)):
    store.write_to_online_store("acts", row(clicks, hour))
    value, status = served()
    seen.append((value, status))
    print(f"{said} -> {value}, status {status}")
if seen != [(30, "PRESENT"), (10, "PRESENT")]:
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
