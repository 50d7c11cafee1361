"""A small export of features for Feast, from files of events, users of whom one moves, and items; needs the ml environment."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from services.trainer.feature_export.main import main
from tests.learning import CATEGORIES, interactions, with_features

FIRST_S = 1_700_000_000
SPECIAL = [
    {"raw_feature": {"feature_name": "price", "expression": "item:price"}},
    {"raw_feature": {"feature_name": "picture", "expression": "item:pic ture", "raw_input_dim": 2}},
    {"id_feature": {"feature_name": "price_word", "expression": "item:price", "hash_bucket_size": 4}},
    {"id_feature": {"feature_name": "page", "expression": "context:page", "vocab_list": ["home"]}},
    {"id_feature": {"feature_name": "city", "expression": "user:city", "vocab_list": ["Rome"]}},
]


def written(folder: Path, *, acts: int = 300) -> dict[str, pd.DataFrame]:
    """Export files of events, users (of whom one moves) and items; return the views as they were read back."""
    events = [
        {"user_id": one.user_id, "item_id": one.item_id, "kind": one.kind, "value": one.value, "time": FIRST_S + one.time_ms // 5_000}
        for one in interactions(acts)
    ]
    pd.DataFrame(events).assign(page="home").to_parquet(folder / "events.parquet")
    users = [{"user_id": f"u{user}", "city": "Rome" if user % 2 else None, "time": FIRST_S - 10} for user in range(20)]
    pd.DataFrame([*users, {"user_id": "u1", "city": "Oslo", "time": FIRST_S + 20}]).to_parquet(folder / "users.parquet")
    items = {"item_id": [str(item) for item in range(150)], "price": [float(item) for item in range(150)]}
    items |= {"pic ture": [[1.0, item / 2] if item else None for item in range(150)], "categories": list(CATEGORIES.values())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    spec = with_features(SPECIAL)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True)))
    files = {"--data": "events", "--users": "users", "--items": "items"}
    options = [text for option, name in files.items() for text in (option, str(folder / f"{name}.parquet"))]
    assert main([*options, "--spec", str(folder / "spec.yaml"), "--out", str(folder / "made" / "feast")]) == 0
    data = folder / "made" / "feast" / "data"
    return {path.stem: pd.read_parquet(path) for path in sorted(data.iterdir())}
