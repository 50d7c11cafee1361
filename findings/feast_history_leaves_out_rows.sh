#!/bin/bash
# Feast 0.67.0, file offline store: get_historical_features returns fewer rows than it was asked for.
#
# The entity data frame is a list of training examples (who, when, often with the label beside it); one expects the same rows back with features
# added, absent where nothing is known, as a left join gives. A row whose newest feature value is older than the view's ttl does not come back
# at all, nor does one that asks before the entity's first value (with any ttl, also none), while a row whose entity was never seen comes back
# with NaN; and of two equal rows one comes back. So examples, and with them labels, vanish without a word, and those of new and of the least
# active users first.
#
# Versions: feast 0.67.0, dask 2026.8.0, pandas 2.3.3, pyarrow 26.0.1; Python 3.11.
# Seen:     asked: 6 rows; came back: 3 rows
#           not yet at 00:00 -> no row
#           known at 02:00 -> 1.0
#           never seen -> nan
#           expired at 09:00 -> no row
#           asked for twice -> 1 row
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
from feast.types import Int64


def at(hour):
    return datetime(2026, 3, 1, hour, tzinfo=timezone.utc)


pd.DataFrame({"user_id": ["ann"], "clicks": [1], "event_timestamp": [at(1)]}).to_parquet("clicks.parquet")
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
asked = pd.DataFrame(
    [("ann", at(0)), ("ann", at(2)), ("ann", at(9)), ("bob", at(2)), ("cid", at(3)), ("cid", at(3))], columns=["user_id", "event_timestamp"]
)
found = store.get_historical_features(entity_df=asked, features=["acts:clicks"]).to_df()
rows = {(row.user_id, row.event_timestamp.hour): row.clicks for row in found.itertuples()}
of_cid = int((found.user_id == "cid").sum())
print(f"asked: {len(asked)} rows; came back: {len(found)} rows")
print(f"not yet at 00:00 -> {rows.get(('ann', 0), 'no row')}")
print(f"known at 02:00 -> {rows.get(('ann', 2), 'no row')}")
print(f"never seen -> {rows.get(('bob', 2), 'no row')}")
print(f"expired at 09:00 -> {rows.get(('ann', 9), 'no row')}")
print(f"asked for twice -> {of_cid} row")
left_out = [hour for hour in (0, 9) if ("ann", hour) not in rows]
if (len(found), rows.get(("ann", 2)), pd.isna(rows.get(("bob", 2), 0)), left_out, of_cid) != (3, 1.0, True, [0, 9], 1):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
